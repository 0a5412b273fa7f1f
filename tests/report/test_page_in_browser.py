"""The page in a real Chromium: what an inspector sees and does. Run by `make test-browser`."""

import csv
import os
import shutil
from pathlib import Path

import pytest

from crackvae.report import decisions, findings, review
from crackvae.report.page import write
from crackvae.run import finalize

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.ray,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium; apt-get install chromium, or set CHROMIUM"),
]
AXE = Path(axe.__file__).with_name("axe.min.js")
LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # in a container, as root
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file without a network; what it complains of and asks for is kept."""
    contexts = []

    def open_page(path, look="light"):
        context = browser.new_context(offline=True, **LOOKS[look])
        contexts.append(context)
        tab = context.new_page()
        tab.complaints, tab.asked = [], []
        tab.on("console", lambda message: tab.complaints.append(message.text))
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(f"file://{path}")
        return tab

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def paths(photograph_run, tile_run):
    return {"photographs": write(photograph_run), "tiles": write(tile_run)}


@pytest.fixture(scope="module")
def path(paths):
    return paths["photographs"]


@pytest.fixture(scope="module")
def rows(photograph_run):
    found = finalize.read_results(photograph_run).to_pandas()
    return found.assign(outcome=[findings.outcome(row) for row in found.to_dict("records")])


def shown(tab):
    return tab.locator("#list tbody th bdi").all_inner_texts()


def column(tab, name):
    heads = [text.strip() for text in tab.locator("#list thead th").all_inner_texts()]
    return tab.locator(f"#list tbody tr > :nth-child({heads.index(name) + 1})").all_inner_texts()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("run", ["photographs", "tiles"])
def test_a_page_complains_of_nothing_asks_for_nothing_and_shows_every_picture(run, look, paths, opened):
    tab = opened(paths[run], look)
    assert tab.complaints == []
    assert [url for url in tab.asked if not url.startswith(("file:", "data:"))] == []
    assert len(shown(tab)) >= 19
    sizes = tab.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(sizes) > 40
    assert min(sizes) > 0
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_serious(look, path, opened):
    tab = opened(path, look)
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    tab.evaluate(AXE.read_text())
    found = tab.evaluate("axe.run()")
    assert len(found["passes"]) > 20  # it has looked
    bad = [violation for violation in found["violations"] if violation["impact"] in {"serious", "critical"}]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]][:3]) for each in bad] == []


def test_names_that_are_markup_stay_text(path, rows, opened):
    tab = opened(path)
    assert set(shown(tab)) == set(rows["image_id"])
    assert "<img src=x onerror=window.broken=1>" in " ".join(shown(tab))
    captions = " ".join(tab.locator("figcaption .name").all_inner_texts())
    assert "onerror" in captions + tab.locator("#structures").inner_text()
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.broken === undefined")


def test_no_script_and_style_but_its_own_runs(path, opened):
    tab = opened(path)
    tab.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.broken = 1";
        document.body.append(script);
        document.body.setAttribute("onclick", "window.broken = 1");
        document.body.insertAdjacentHTML("beforeend", "<p id=styled style='color: rgb(1, 2, 3)'>text</p>");
    }""")
    tab.locator("h1").click()
    assert tab.evaluate("window.broken === undefined")
    assert tab.evaluate("getComputedStyle(document.getElementById('styled')).color") != "rgb(1, 2, 3)"
    assert "Content Security Policy" in " ".join(tab.complaints)


@pytest.mark.parametrize(
    ("control", "name"), [("#outcome", "outcome"), ("#label", "label"), ("#structure", "structure")]
)
def test_each_choice_shows_the_rows_of_its_value(control, name, path, rows, opened):
    tab = opened(path)
    values = rows.assign(structure=rows["image_id"].str.rpartition("/")[0])[name]
    options = tab.locator(f"{control} option").evaluate_all("all => all.map(each => [each.value, each.textContent])")
    assert {value[1:] for value, _ in options[1:]} == set(values)
    assert len(options) > 2
    for value, text in options[1:]:
        tab.select_option(control, value)
        expected = set(rows["image_id"][values == value[1:]])
        assert set(shown(tab)) == expected
        assert text == f"{value[1:]} ({len(expected)})"
        assert f"{len(expected)} of {len(rows)};" in tab.locator("#found").inner_text()


def test_scores_and_search_filter_and_everything_comes_back(path, rows, opened):
    tab = opened(path)
    least, most = rows["score"].quantile([0.4, 0.8])
    tab.fill("#least", f"{least}")
    tab.fill("#most", f"{most}")
    assert set(shown(tab)) == set(rows["image_id"][rows["score"].between(least, most)])
    assert 3 < len(shown(tab)) < 20
    tab.click("#reset")
    assert len(shown(tab)) == len(rows)
    tab.fill("#search", "NORMAL/000")
    assert set(shown(tab)) == set(rows["image_id"][rows["image_id"].str.contains("normal/000")])
    tab.fill("#search", "</script>")
    assert len(shown(tab)) == 1
    tab.fill("#search", "no image has such a name")
    assert shown(tab) == []
    assert tab.locator("#found").inner_text() == f"0 of {len(rows)}"


def test_headers_sort_by_keyboard_and_say_how(path, rows, opened):
    tab = opened(path)
    score = tab.get_by_role("button", name="Score", exact=True)
    score.focus()
    tab.keyboard.press("Enter")
    expected = rows.sort_values("score", ascending=False, kind="stable")["score"].dropna()
    found = [float(text) for text in column(tab, "Score") if text]
    assert found == pytest.approx(list(expected), rel=1e-3)
    assert column(tab, "Score")[len(found) :] == [""] * (len(rows) - len(found))  # what has none comes last
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    tab.keyboard.press("Enter")
    assert [float(text) for text in column(tab, "Score") if text] == found[::-1]
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    tab.get_by_role("button", name="Name", exact=True).click()
    assert shown(tab) == sorted(rows["image_id"])


def test_pages_turn(paths, opened):
    tab = opened(paths["tiles"])
    first = shown(tab)
    assert "page 1 of 4" in tab.locator("#pages").inner_text()
    assert tab.locator("#before").is_disabled()
    seen = list(first)
    while tab.locator("#after").is_enabled():
        tab.click("#after")
        seen += shown(tab)
    assert len(seen) == len(set(seen)) == 160
    tab.fill("#search", first[0])
    assert shown(tab) == [first[0]]
    assert tab.locator("#pages").is_hidden()


def test_the_first_tab_leads_to_the_findings(path, opened):
    tab = opened(path)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the findings"
    tab.keyboard.press("Enter")
    assert tab.evaluate("location.hash") == "#findings"


def test_on_paper_there_are_no_controls(path, opened):
    tab = opened(path)
    tab.emulate_media(media="print")
    assert tab.locator("#filters").is_hidden()
    assert tab.locator("#list").is_visible()
    assert tab.pdf()[:4] == b"%PDF"


@pytest.fixture(scope="module")
def reviewed(photograph_run, tmp_path_factory):
    """The page of a run with a review: ten images to look at and an audit sample of four."""
    run = shutil.copytree(photograph_run, tmp_path_factory.mktemp("reviewed") / "run")
    made = review.plan(str(run), budget=10, audit=4)
    return run, made, write(str(run))


def downloaded(tab, path):
    with tab.expect_download() as waiting:
        tab.click("#download")
    assert waiting.value.suggested_filename == "decisions.csv"
    waiting.value.save_as(path)
    with path.open(newline="") as stream:
        return {row["image_id"].removeprefix("'"): row for row in csv.DictReader(stream)}


def test_decisions_are_made_with_buttons_keys_and_notes_and_downloaded_for_the_command(reviewed, tmp_path, opened):
    run, made, page = reviewed
    tab = opened(page)
    tab.select_option("#review", "=list")
    listed = made.of("list")["image_id"].tolist()
    assert shown(tab) == listed
    groups = tab.locator("#list tbody [role=group]")
    groups.nth(0).get_by_role("button", name="crack", exact=True).click()
    groups.nth(0).get_by_role("textbox").fill('=1+1, "wide"\u00e4')
    groups.nth(1).get_by_role("button", name="no crack").click()
    groups.nth(1).get_by_role("button", name="no crack").click()  # taken back
    groups.nth(2).get_by_role("button", name="crack", exact=True).focus()
    for key in "ncu":  # each goes on to the next row
        tab.keyboard.press(key)
    tab.keyboard.press("Enter")  # on the button that has the focus now
    assert tab.locator("#decided").inner_text() == "5 decided"
    pressed = tab.locator("#list tbody button[aria-pressed=true]").all_inner_texts()
    assert pressed == ["crack", "no crack", "crack", "unsure", "crack"]
    tab.select_option("#review", "=audit")
    tab.locator("#list tbody").get_by_role("button", name="no crack").first.click()
    audited = shown(tab)[0]
    tab.click("#reset")
    found = downloaded(tab, tmp_path / "decisions.csv")
    expected = [(listed[0], "crack"), *zip(listed[2:6], ("no crack", "crack", "unsure", "crack"), strict=True)]
    assert {name: row["decision"] for name, row in found.items()} == dict([*expected, (audited, "no crack")])
    assert found[listed[0]]["note"] == '\'=1+1, "wide"\u00e4'
    counts = decisions.decide(str(run), str(tmp_path / "decisions.csv")).counts()
    assert counts["list"] == {"crack": 3, "no crack": 1, "unsure": 1, "undecided": len(listed) - 5}
    assert counts["audit"]["no crack"] == 1
    assert tab.complaints == []
    assert [url for url in tab.asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_hostile_names_can_be_decided(reviewed, rows, tmp_path, opened):
    run, _, page = reviewed
    tab = opened(page)
    for name in rows["image_id"]:
        tab.get_by_role("group", name=f"Decision on {name}", exact=True).get_by_role("button", name="unsure").click()
    assert set(downloaded(tab, tmp_path / "d.csv")) == set(rows["image_id"])
    assert len(decisions.decide(str(run), str(tmp_path / "d.csv")).decision) == len(rows)


@pytest.mark.parametrize("look", LOOKS)
def test_a_page_with_a_review_is_as_accessible(look, reviewed, opened):
    tab = opened(reviewed[2], look)
    tab.locator("#list tbody").get_by_role("button", name="no crack").first.click()
    tab.evaluate(AXE.read_text())
    found = tab.evaluate("axe.run()")
    bad = [violation for violation in found["violations"] if violation["impact"] in {"serious", "critical"}]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]][:3]) for each in bad] == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
