"""The device's side without torch: a host as a graph, the prototype bank, and edits that arrive as bytes.

Needs numpy, safetensors and onnxruntime. Whatever goes wrong, a device answers: by its last good edit, else by its last
prototype, else by the host as it was shipped.

Example::

    device = Device(DeviceBundle.load("film-bundle"), state="film-state")
    device.receive(message, "basis")
    outputs = device.run({"items": items, "lengths": lengths})
"""

from persona.device.bank import DeviceBank
from persona.device.bundle import DeviceBundle
from persona.device.client import CloudClient, CloudEdit, CloudError
from persona.device.policy import RequestPolicy
from persona.device.runtime import Device, Outputs, Received

__all__ = [
    "CloudClient",
    "CloudEdit",
    "CloudError",
    "Device",
    "DeviceBank",
    "DeviceBundle",
    "Outputs",
    "Received",
    "RequestPolicy",
]
