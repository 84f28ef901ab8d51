"""What all explorers share: controls above one picture that is updated in place, and words below it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from typing import Any, Literal

import ipywidgets

from wsss_nb.system.workers import fixed_threads
from wsss_nb.teach.photos import PHOTOS, load_photo
from wsss_nb.teach.pictures import Picture

__all__ = ["Explorer"]

Reaction = Callable[[Any], None]
_LOOK = {"style": {"description_width": "110px"}, "layout": {"width": "310px"}}
_GRID = {"grid_template_columns": "repeat(auto-fill, 312px)", "grid_gap": "2px 8px"}
_GRID |= {"align_items": "center", "justify_items": "flex-start"}
# JupyterLab's colours, which follow its light and dark themes
_PLAIN, _PROBLEM = "var(--jp-ui-font-color1, #555)", "var(--jp-error-color1, #b00020)"


class Explorer(ipywidgets.VBox):
    """Controls above one persistent image that is updated in place, and a line of words below it.

    The words are what a screen reader announces: the picture's description, or what is wrong with the settings.
    (An ipywidgets image has no alternative text, and one with a tooltip does not open in JupyterLab.)
    A subclass names its controls, loads and draws; nothing that it raises when a control is used reaches the kernel's
    event loop.

    Args:
        width: the picture's largest, in pixels.
        reactions: what to do when a control changes its value or is clicked, by the control's name; all others
            redraw.
        controls: in the order of the screen, buttons last; each becomes an attribute of its name.
    """

    draw: Callable[[], Picture]
    """The picture that the controls ask for; each explorer has its own."""
    encoding: Literal["png", "jpeg"] = "png"
    _quiet = False

    def __init__(self, width: int, reactions: Mapping[str, Reaction] | None = None, **controls: Any) -> None:
        for name, control in controls.items():
            setattr(self, name, control)
        self.picture = ipywidgets.Image(format=self.encoding, layout={"width": "100%", "max_width": f"{width}px"})
        self.words = ipywidgets.HTML()
        self.values: dict[str, float] = {}
        buttons = [control for control in controls.values() if isinstance(control, ipywidgets.Button)]
        others = [control for control in controls.values() if control not in buttons]
        grid = ipywidgets.GridBox([*others, ipywidgets.Box(buttons)] if buttons else others, layout=_GRID)
        super().__init__([grid, self.picture, self.words])
        self.add_class("wsss-explorer")
        self.load()
        self._react(self.refresh)
        for name, control in controls.items():
            react = partial(self._react, (reactions or {}).get(name, self.refresh))
            if control in buttons:
                control.on_click(react)
            else:
                control.observe(react, names="value")

    def load(self) -> None:
        """Get what the chosen example needs, before the first picture and when another one is chosen."""

    def chosen(self, *names: str) -> dict[str, Any]:
        """The values of some controls, by name."""
        return {name: getattr(self, name).value for name in names}

    def restart(self, _: Any = None) -> None:
        """Load and redraw."""
        self.load()
        self.refresh()

    def refresh(self, _: Any = None) -> None:
        """Redraw; the old picture stays where the settings make none."""
        with fixed_threads(1):
            picture = self.draw()
        self.values = dict(picture.values)
        self.picture.value = picture.png() if self.encoding == "png" else picture.jpeg()
        self.say(picture.alt)

    def _react(self, reaction: Reaction, change: Any = None) -> None:
        try:
            if not self._quiet:
                reaction(change)
        except Exception as error:  # memory that ran out, a file that broke off: the kernel goes on
            self.say(str(error) or type(error).__name__, problem=True)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Change several controls without a picture in between."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def say(self, text: str, problem: bool = False) -> None:
        """Put a sentence below the picture."""
        style = f"color:{_PROBLEM if problem else _PLAIN};font-size:12px;line-height:1.3"
        self.words.value = f'<div role="status" aria-live="polite" style="{style}">{escape(text)}</div>'


def slider(value: float, low: float, high: float, step: float, text: str, fluent: bool = True) -> Any:
    """A slider of the type of ``value``, from ``low`` to ``high``, or further where ``value`` lies outside.

    Args:
        value: to begin with.
        low: left end.
        high: right end.
        step: between values.
        text: to its left.
        fluent: whether it reports while it is dragged; else when it is let go.
    """
    make = ipywidgets.IntSlider if isinstance(value, int) else ipywidgets.FloatSlider
    ends = {"min": min(low, value), "max": max(high, value), "step": step}
    return make(value=value, **ends, description=text, continuous_update=fluent, **_LOOK)


def menu(options: Sequence[Any], text: str, value: Any = None, make: Any = ipywidgets.Dropdown) -> Any:
    """A choice of options or (text, value) pairs, beginning with the first where no value is given."""
    chosen = {} if value is None else {"value": value}
    return make(options=options, description=text, **chosen, **_LOOK)


def photo_options() -> list[tuple[str, str]]:
    """The lessons' photographs for a menu: titles and names."""
    return [(load_photo(name).title, name) for name in PHOTOS]
