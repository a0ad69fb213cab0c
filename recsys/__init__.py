"""The sequential-recommendation task: logs, protocols, hosts on TorchRec, baselines, and the servable recommender."""
