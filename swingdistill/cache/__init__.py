"""A teacher's targets written once, for students that train without the teacher."""
