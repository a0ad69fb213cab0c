"""What every test process needs before torch is used: the environment and one thread per process."""

from persona import runtime

runtime.set_environment()
runtime.configure(threads=1)
