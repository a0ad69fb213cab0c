"""The vision task: torchvision classifiers under device shift."""
