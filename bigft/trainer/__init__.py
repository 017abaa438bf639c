"""Time: steps, saving, stopping. Knows neither settings of others nor any task."""
