"""The only place where core and net meet: workers, their supervision, and their wiring."""
