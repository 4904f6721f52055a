"""The names and signatures of other attack libraries, running fastadv's attacks."""
