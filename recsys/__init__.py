"""The sequential-recommendation task: logs, protocols, hosts on TorchRec, methods, and the servable recommender."""
