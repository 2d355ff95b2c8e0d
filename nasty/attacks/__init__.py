"""What an attacker can do beyond plain distillation; one file an attack, run by `nasty.attack`."""
