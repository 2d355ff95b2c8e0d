"""What an owner can do beyond training a nasty teacher from scratch; one file a defence."""
