"""The coordinator's side of secure aggregation: from masked vectors to their sum.

It relays keys and shares, adds up words that say nothing, and takes off the masks of the sum with
the shares that institutions reveal at the end. What an institution sends is checked as it
arrives, and MalformedMessage says what was wrong with it; whoever sent it is then out of the
session. A share that was not dealt is known by its hash: it is left out, and named.
"""

from itertools import islice

from protocol.errors import MalformedMessage
from protocol.roster import Roster
from protocol.secure_aggregation.contribution import Sum, dequantise
from protocol.secure_aggregation.fields import join_fields, join_names
from protocol.secure_aggregation.keys import Advertisement, commit_seed, public_key
from protocol.secure_aggregation.masks import Masked, pair_key, pair_sign, self_key
from protocol.secure_aggregation.parcels import Parcel, commit_share, join_parcels, read_parcels
from protocol.secure_aggregation.revealed import read_revealed
from protocol.secure_aggregation.roll import Roll, verify
from protocol.secure_aggregation.session import Session
from protocol.secure_aggregation.shamir import combine
from protocol.secure_aggregation.survivors import agrees, join_signatures


class Unmasking:
    """One session. Institutions are known by their names in the roster."""

    def __init__(self, session: Session, roster: Roster) -> None:
        self.session = session
        self.roster = roster
        self._shown: dict[str, Advertisement] = {}
        self._roll: Roll | None = None
        self._parcels: dict[str, dict[str, Parcel]] = {}
        self._sum: Masked | None = None
        self._arrived: set[str] = set()
        self._signatures: dict[str, bytes] = {}
        self._revealed: dict[str, dict[str, bytes]] = {}

    def take_keys(self, content: object) -> str:
        """An institution's advertisement; returns its name."""
        shown = Advertisement.read(content)
        verify(shown, self.session, self.roster)
        if shown.name in self._shown:
            raise MalformedMessage(f"{shown.name} showed keys twice")
        self._shown[shown.name] = shown
        return shown.name

    @property
    def roll(self) -> Roll:
        """Everybody who showed keys. Raises MalformedMessage if they are too few."""
        if self._roll is None or len(self._roll.shown) != len(self._shown):
            self._roll = Roll.of(self.session, self._shown.values())
        return self._roll

    def take_parcels(self, name: str, content: object) -> None:
        """What ``name`` dealt: exactly one parcel for each other participant."""
        parcels = read_parcels(content)
        found = {one.receiver: one for one in parcels}
        senders = {one.sender for one in parcels}
        if (
            name in self._parcels
            or len(found) < len(parcels)
            or set(found) != set(self._shown) - {name}
            or senders != {name}
        ):
            raise MalformedMessage("parcels: expected one for each other participant")
        self._parcels[name] = found

    @property
    def dealt(self) -> tuple[str, ...]:
        """Who dealt shares: the participants that masks are made with."""
        return tuple(sorted(self._parcels))

    def parcels_for(self, name: str) -> bytes:
        """What the others dealt to ``name``."""
        return join_parcels(self._parcels[sender][name] for sender in self.dealt if sender != name)

    def take_masked(self, name: str, words: Masked) -> None:
        """A masked vector; of sizes that were checked before."""
        if name in self._arrived or name not in self._parcels:
            raise MalformedMessage(
                f"a masked vector of {name} is there twice, or was not asked for"
            )
        if self._sum is None:
            self._sum = Masked(words.update.copy(), words.totals.copy())
        else:
            self._sum += words
        self._arrived.add(name)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors arrived."""
        return tuple(sorted(self._arrived))

    @property
    def complete(self) -> bool:
        """Whether nobody dropped out; then the survivors need not be agreed to."""
        return self.survivors == self.dealt

    def take_signature(self, name: str, content: object) -> None:
        """That ``name`` agrees to the survivors."""
        if not isinstance(content, bytes) or not agrees(
            name, content, self.roster, self._circle, self.survivors
        ):
            raise MalformedMessage("survivors: not signed as they are")
        self._signatures[name] = content

    @property
    def agreed(self) -> int:
        """How many have signed the list of survivors."""
        return len(self._signatures)

    def closing(self) -> tuple[bytes, bytes]:
        """The survivors and the signatures that show that they were agreed to."""
        return join_names(self.survivors), join_signatures(sorted(self._signatures.items()))

    def take_revealed(self, name: str, content: object) -> None:
        """Shares that ``name`` reveals; it is named if one is not what it was dealt."""
        shares = read_revealed(content, self.dealt)
        for other, share in shares.items():
            if other == name:
                continue  # of its own it dealt none: a wrong one shows when it is used
            about = join_fields([self.roll.digest, other.encode(), name.encode()])
            half = slice(0, 32) if other in self._arrived else slice(32, 64)
            if self._parcels[other][name].commitments[half] != commit_share(about, share):
                raise MalformedMessage(f"the share of {other} that it reveals is not what it holds")
        self._revealed[name] = shares

    def unmask(self) -> Sum:
        """The sum over the survivors. Raises MalformedMessage, naming who prevents it."""
        if self._sum is None or not self._revealed:
            raise MalformedMessage("no masked vector, or no revealed share, has arrived")
        roll, circle = self.roll, self._circle
        summed = Masked(self._sum.update.copy(), self._sum.totals.copy())
        for name in self.dealt:
            secret = self._recover(roll, name)
            if name in self._arrived:
                summed.add(self_key(secret, circle, name), -1)
                continue
            for other in self.survivors:
                key = pair_key(secret, roll.find(other).mask_key, circle, name, other)
                # What the survivor added for it is still there.
                summed.add(key, 1 if pair_sign(other, name) == -1 else -1)
        return dequantise(summed, self.session, len(roll.shown))

    def _recover(self, roll: Roll, name: str) -> bytes:
        """A survivor's seed, or the mask key of one who dropped out, from revealed shares."""
        shown, survived = roll.find(name), name in self._arrived
        held = {holder: shares[name] for holder, shares in self._revealed.items()}
        own = held.pop(name, None)
        shares = {roll.point(holder): share for holder, share in held.items()}
        # Its own share has no hash to check it by: it is used where the others are too few.
        if len(shares) < roll.threshold and own is not None:
            shares[roll.point(name)] = own
        if len(shares) < roll.threshold:
            raise MalformedMessage(
                f"{len(shares)} right shares of {name}, expected at least {roll.threshold}"
            )
        wrong = MalformedMessage(f"{name} dealt shares that are of no secret that it showed")
        try:
            secret = combine(dict(islice(sorted(shares.items()), roll.threshold)))
        except MalformedMessage as error:
            raise wrong from error
        right = (
            commit_seed(secret) == shown.commitment
            if survived
            else public_key(secret) == shown.mask_key
        )
        if not right:
            raise wrong
        return secret

    @property
    def _circle(self) -> bytes:
        return self.roll.circle(self.dealt)
