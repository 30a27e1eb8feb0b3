"""``blindsight experiment``: does joining pay? Alone, federated and pooled, in one table."""
