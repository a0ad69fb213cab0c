"""Persona: real-time personalisation of on-device models by prototype-based, back-propagation-free parameter editing."""

from persona.runtime import set_environment

set_environment()

__version__ = "0.1.0"
