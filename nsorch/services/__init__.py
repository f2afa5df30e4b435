"""Configuration of programs that workers run: pure text, and the launcher of what needs one."""
