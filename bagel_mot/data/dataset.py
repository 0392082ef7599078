"""A data set: a reader of rows, and the mapper that makes documents of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bagel_mot.data.documents import Document, ImageRules, SampleBuilder
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import BrokenRow, Reader, Row
from bagel_mot.data.rows import RowKey, SkipRow
from bagel_mot.errors import DataError
from bagel_mot.sequence import PackSpec

Mapper = Callable[[Row, Draws], Document]
"""A row as a document; it raises `SkipRow` for a row that no sample can be made of. Mappers can be pickled."""


@dataclass(frozen=True)
class Dataset:
    """Rows of one kind, as documents.

    Attributes:
        name: the name of the data set, unique in a run.
        reader: the rows.
        mapper: makes a document of a row.
        images: the rules by which its images are opened and resized.
        licence: the licence of the data, where it is known.
    """

    name: str
    reader: Reader
    mapper: Mapper
    images: ImageRules = field(default_factory=lambda: ImageRules())
    licence: str | None = None

    def rows(self, unit: int, start: int = 0) -> Iterator[tuple[RowKey, Row]]:
        """The rows of a unit in order, each with its key, from row `start` on."""
        for number, row in enumerate(self.reader.read(unit, start), start):
            yield RowKey(self.name, unit, number), row

    def document(self, row: Row, draws: Draws) -> Document:
        """The document of a row; what is random about it is drawn from `draws`.

        Images may stay undecoded: those that are damaged are found when the sample is made, which raises `SkipRow` as
        well.

        Raises:
            SkipRow: no sample can be made of the row.
        """
        if isinstance(row, BrokenRow):
            raise SkipRow(row.reason, row.sentence)
        return self.mapper(row, draws)

    def check_sizes(self, builder: SampleBuilder, spec: PackSpec) -> None:
        """Checks that every image fits the model, however large its file is.

        Args:
            builder: makes the samples; its limits count where the data set has none of its own.
            spec: the sides of the model's position tables.

        Raises:
            DataError: the limits of an image's sides are not in whole tokens, or lie beyond a position table.
        """
        vae, vit = self.images.vae or builder.vae_transform, self.images.vit or builder.vit_transform
        for transform, token, side, what in (
            (vae, builder.latent_stride, spec.latent_side, "latent token"),
            (vit, builder.patch_size, spec.vit_side, "ViT patch"),
        ):
            if transform.stride % token:
                raise DataError(
                    f"{self.name}: the sides of images are multiples of {transform.stride} pixels; they must be "
                    f"multiples of {token}, the side of a {what} of this model"
                )
            longest = max(round(transform.max_size / transform.stride), 1) * transform.stride // token
            if longest > side and not spec.interpolate:
                raise DataError(
                    f"{self.name}: images may have a side of {transform.max_size} pixels, which takes {longest} of a "
                    f"{what}; this model has positions for {side}, so the limit must be {side * token} pixels or less"
                )

    def place(self, key: RowKey) -> str:
        """The words that a person finds a row by."""
        return f"{self.name}: {self.reader.place(key.unit, key.row)}"


@dataclass(frozen=True)
class DataGroup:
    """Data sets that are drawn from as one, with a share of all draws.

    Attributes:
        name: the name of the group, unique in a run.
        datasets: its data sets.
        weight: the share in random draws, relative to those of the other groups.
        mandatory: whether one sample of it opens every pack, where packs are filled as the published loop does.
        resumes: whether a resumed run goes on where this group was; else it begins anew.
    """

    name: str
    datasets: Sequence[Dataset]
    weight: float = 1.0
    mandatory: bool = False
    resumes: bool = True
