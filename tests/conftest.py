"""What every test process needs before torch is used: the environment and one thread per process."""

import os

from hypothesis import HealthCheck, settings

from persona import runtime

runtime.configure(threads=1)

# A busy machine is no failure, and the same commit gives the same verdict in continuous integration.
settings.register_profile(
    "persona", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("persona")
