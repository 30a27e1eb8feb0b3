"""Double masking: a coordinator learns the sum of secret vectors and nothing else of them.

After Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS
2017), figure 4, the variant against an active adversary. One file a noun, in the order in which a
round needs them: ``session`` (which round of which run), ``keys`` (ephemeral, signed), ``roll``
(who takes part), ``shamir`` and ``parcels`` (shares of secrets, encrypted), ``contribution``
(numbers to whole words), ``masks``, ``survivors`` (who came through), ``revealed`` (shares,
opened), and ``fields`` (how all of it is written). ``docs/protocol.md`` 8 has the messages and the
derivations.

The institution's state machine is ``client.institution.masking``, the coordinator's is
``server.unmasking``.
"""
