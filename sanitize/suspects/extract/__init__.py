"""What runs in the child process: it turns a suspect file into plain numbers, and executes nothing of it.

Standard library only, so that the child starts in milliseconds, needs little memory, and has no foreign code in reach.
"""
