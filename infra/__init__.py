"""What Smooth runs on: the local cluster, deployments, the lock of every version."""
