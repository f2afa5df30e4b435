"""Topologies of other tools. What can't be carried over is told in the topology's ``notes``, one line each."""
