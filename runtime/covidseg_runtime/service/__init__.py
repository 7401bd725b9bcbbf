"""The runtime over HTTP: jobs, and KServe v2 inference."""
