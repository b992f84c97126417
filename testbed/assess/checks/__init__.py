"""The health checks, one file each: `testbed.assess.health`."""
