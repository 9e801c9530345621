"""`sanitize serve`: MLflow's registry webhooks in, the gate's decisions and alarms out."""
