"""Stand-in for Slicer's module SampleData: records what is registered and never downloads."""

from __future__ import annotations

from typing import Any

import slicer


class SampleDataSource:
    """One button of the SampleData panel."""

    def __init__(
        self,
        sampleName: str | None = None,
        sampleDescription: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        checksums: Any = None,
        loadFiles: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: Any = None,
        loadFileProperties: dict[str, Any] | None = None,
        loadFileType: Any = None,
    ) -> None:
        if loadFileType is not None and loadFileTypes is not None:
            raise ValueError("loadFileType and loadFileTypes cannot be specified at the same time")
        self.sampleName = sampleName
        self.sampleDescription = sampleName if sampleDescription is None else sampleDescription
        self.customDownloader, self.thumbnailFileName = customDownloader, thumbnailFileName
        self.loadFileProperties = loadFileProperties or {}
        types = loadFileTypes if loadFileTypes is not None else loadFileType
        lists = {"fileNames": fileNames, "nodeNames": nodeNames, "loadFiles": loadFiles}
        lists |= {"loadFileTypes": types, "checksums": checksums}
        if isinstance(uris, str):
            uris, lists = [uris], {name: [value] for name, value in lists.items()}
        else:
            count = len(uris)
            if isinstance(types, str):
                lists["loadFileTypes"] = [types] * count
            lists |= {
                name: [None] * count for name, value in lists.items() if value is None and name != "fileNames"
            }
        self.uris = uris
        vars(self).update(lists)
        if any(len(value) != len(uris) for value in lists.values()):
            raise ValueError(f"All fields of sample data source must have the same length: {uris}, {lists}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SampleDataSource) and vars(self) == vars(other)

    __hash__ = None


class SampleDataLogic:
    """Keeps the sources in slicer.modules.sampleDataSources, as Slicer's does."""

    @staticmethod
    def registerCustomSampleDataCategory(category: str, title: str) -> None:
        """Give a category a title."""
        _known("sampleDataSourceCategories").setdefault(category, {})["title"] = title

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: Any = None,
        loadFiles: Any = None,
        loadFileProperties: dict[str, Any] | None = None,
        checksums: Any = None,
        loadFileType: Any = None,
    ) -> None:
        """Add a source once. As in Slicer 5.13 there is no sampleDescription here."""
        source = SampleDataSource(
            sampleName=sampleName,
            uris=uris,
            fileNames=fileNames,
            nodeNames=nodeNames,
            thumbnailFileName=thumbnailFileName,
            loadFileTypes=loadFileTypes,
            loadFileType=loadFileType,
            loadFiles=loadFiles,
            loadFileProperties=loadFileProperties,
            checksums=checksums,
            customDownloader=customDownloader,
        )
        sources = _known("sampleDataSources").setdefault(category, [])
        if source not in sources:
            sources.append(source)

    @staticmethod
    def categoryTitle(category: str) -> str:
        """The title of a category, or its name."""
        return _known("sampleDataSourceCategories").get(category, {}).get("title", category)

    @staticmethod
    def sampleDataSourcesByCategory(category: str | None = None) -> Any:
        """All sources, or those of a category."""
        sources = _known("sampleDataSources")
        return sources if category is None else sources.get(category, [])

    def sourceForSampleName(self, sampleName: str) -> SampleDataSource | None:
        """The source of a name."""
        for sources in _known("sampleDataSources").values():
            for source in sources:
                if source.sampleName == sampleName:
                    return source
        return None


def press(sample_name: str) -> Any:
    """For tests: what the panel's button does for a source with a customDownloader."""
    source = SampleDataLogic().sourceForSampleName(sample_name)
    if source is None or source.customDownloader is None:
        raise LookupError(f"No sample with its own downloader is registered as {sample_name!r}")
    return source.customDownloader(source)


def reset() -> None:
    """Forget what was registered."""
    _known("sampleDataSources").clear()
    _known("sampleDataSourceCategories").clear()


def _known(name: str) -> dict[str, Any]:
    if not hasattr(slicer.modules, name):
        setattr(slicer.modules, name, {})
    return getattr(slicer.modules, name)
