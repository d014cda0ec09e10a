"""The page in a browser without a network: sorted, drilled into and themed by clicking and by keyboard."""

import re
import shutil

import pytest
import yaml
from report_material import cell, late, put

from evalkit.analysis.compare import paired_p
from evalkit.config.compose import compose
from evalkit.datasets.demo import load_demo
from evalkit.report import build
from evalkit.run.identity import texts_checksum
from evalkit.storage import cell_config, results
from evalkit.types import Hit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="chromium and chromedriver are not installed (apt-get install chromium-driver)",
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)


ODD = cell(model="odd", dataset="beir/imagined")
WORDS = ("model=bm25", "dataset=demo", "dataset.demo.documents=60", "dataset.demo.queries=4")
DEMO = load_demo(compose(list(WORDS)).dataset.demo)


def on_the_demo(model, dim=None):
    """A run on four of the demo's queries, its texts proved by their checksum."""
    protocol = {**cell().protocol, "queries": texts_checksum(DEMO.queries), "k1": model}
    return cell(model=model, dim=dim, dataset="demo", metrics={"ndcg@10": 0.5}, protocol=protocol)


def hits(*names):
    return [Hit(name, float(len(names) - place)) for place, name in enumerate(names)]


def put_demo(folder, run, *words, ranked, values):
    """Write a run on the demo with its settings; every query finds the same documents."""
    path = folder / "runs" / run.run_id
    path.mkdir(parents=True)
    (path / results.CONFIG).write_text(yaml.safe_dump(cell_config.plain(compose(list(words)))), encoding="utf-8")
    names = [query.id for query in DEMO.queries]
    put(
        folder,
        run,
        per_query=dict(zip(names, values, strict=True)),
        run={name: hits(*ranked) for name in names},
        qrels={name: {"d2": 2, "d3": 0, "gone": 1} for name in names},
    )


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    put(folder, cell(), per_query={"q1": 0.9, "q2": 0.02635, "q10": 0.05}, run={"q1": hits("d7"), "q2": hits("d8")})
    (folder / "runs" / cell().run_id / results.QRELS).unlink()
    put(folder, late(), per_query={"q1": 0.2, "q2": 0.4, "q10": 0.438})
    put(folder, late(dim=64, value=0.347), per_query={"q1": 0.1, "q2": 0.4, "q10": 0.541})
    put(folder, late(dim=64, query_tokens=16, value=0.31), per_query={"q1": 0.1, "q2": 0.4, "q10": 0.43})
    # Anserini dropped the query's own document as this run did, the card did not.
    arguana = {**cell().protocol, "corpus": "1"}
    scores = {**cell().metrics, "ndcg@10": 0.4142}
    values = {"q1": 0.9, "q2": 0.0426, "q10": 0.3}
    put(folder, cell(dataset="beir/arguana", metrics=scores, protocol=arguana), per_query=values)
    put(folder, ODD, per_query={"</script>": 0.32545})
    put(folder, late(dim=96))
    put(folder, late(dim=96, protocol={**late(dim=96).protocol, "depth": 200}))
    lexical, dense = on_the_demo("bm25"), on_the_demo("mine", dim=64)
    put_demo(folder, lexical, *WORDS, "search.depth=200", ranked=("d1", "d2", "d3"), values=(0.25, 0.5, 0.75, 0.5))
    words = ("model=demo", "dim=64", *WORDS[1:])
    put_demo(folder, dense, *words, ranked=("d2", "d1"), values=(0.5, 0.25, 0.5, 0.75))
    build.write(build.build(folder), folder)
    return folder


def browser(tmp_path_factory, *flags):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, *flags, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = browser(tmp_path_factory, "--window-size=1280,1000")
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, results_dir):
    driver.get(f"file://{results_dir}/site/index.html")
    return driver


def find(page, selector):
    return page.find_element("css selector", selector)


def click(page, selector):
    """Click an element where nothing that sticks to the window's edges covers it."""
    element = find(page, selector)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def rows_of(page, selector):
    return page.find_elements("css selector", f"{selector} tbody tr")


def texts(page, selector):
    return [element.text for element in page.find_elements("css selector", selector)]


def press(page, key):
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(key).perform()


def test_nothing_is_asked_of_the_network_and_no_error_is_logged(page):
    import json

    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:", "chrome:"))] == []
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_verdicts_read_without_colour(page):
    row = next(text for text in texts(page, "#beir tbody tr") if text.startswith("beir/nfcorpus"))
    assert "0.32545" in row
    assert "✓ MATCH" in row
    assert "○ NOT-RUN" in row
    assert "≠ PROTOCOL-DIFFERS" in find(page, "#beir").text
    assert "query.max_tokens is 16, published with 32" in find(page, "#runs").text


def test_the_audit_the_problems_and_the_partial_averages_are_told(page):
    assert "2 results claim this cell" in find(page, "#problems").text
    rows = [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows_of(page, "#audit")]
    failing = {(row[0], row[1]): row[3:] for row in rows if row[5] == "✗ no"}
    assert len(rows) == 12
    assert failing == {
        ("miracl", "jina-colbert-v2:128"): ["0.627", "0.6228", "✗ no", "miracl/id"],
        ("miracl", "mdpr:768"): ["0.427", "0.4184", "✗ no", "miracl/id"],
        ("mmarco", "bm25"): ["0.141", "0.1388", "✗ no", "mmarco/ar, or mmarco/zh"],
    }
    assert "1 of 13 run" in find(page, "#beir tfoot").text


def test_the_question_of_the_title_is_answered_in_numbers(page):
    # nfcorpus of bm25 and of jina-colbert-v2 at 128 and 64; 128 is printed in two of the card's tables and counted
    # once. bm25 on ArguAna was measured under another protocol than the card's, and 64 with short queries under no
    # publisher's.
    assert find(page, ".answer").text == "2 of 57 cells of jina-colbert-v2 measured; 2 hold."
    said = find(page, "header").text
    assert "Of the 86 scores of the systems that the card compares it with, 1 was measured and 1 holds" in said
    assert "bm25 on beir/nfcorpus, a score that the card quotes, 0.325 → 0.32545 ✓ MATCH" in said
    assert "1 more was run under another protocol." in said
    assert "3 of the card’s 12 averages do not follow from its own rows." in said


def test_one_bar_shows_every_cell_once_by_verdict(page):
    assert find(page, ".bar").get_attribute("aria-label") == (
        "The card’s 143 cells by verdict: 3 MATCH, 1 PROTOCOL-DIFFERS, 139 NOT-RUN"
    )
    widths = [int(part.value_of_css_property("flex-grow")) for part in page.find_elements("css selector", ".bar i")]
    assert widths == [3, 1, 139]
    assert texts(page, "ul.tally li")[:3] == ["3 ✓ MATCH", "1 ≠ PROTOCOL-DIFFERS", "139 ○ NOT-RUN"]


def test_the_card_s_own_tables_stand_before_the_boards(page):
    order = [section.get_attribute("id") for section in page.find_elements("css selector", "main section")]
    card = ["beir", "msmarco", "miracl", "mmarco", "matryoshka"]
    assert order[1:] == [*card, "cells", "leaderboard", "own", "dims", "runs", "audit", "others", "provenance"]
    assert "demo" not in find(page, "#leaderboard tbody").text
    assert texts(page, "#own h3") == ["BEIR: cells that the card does not have NDCG@10", "demo NDCG@10"]


def test_a_column_says_whether_the_card_ran_or_quoted_it(page):
    origins = [text.splitlines()[-1] for text in texts(page, "#beir thead th")[1:]]
    assert origins == ["card’s own", "card’s own", "quoted", "quoted"]


def test_a_measured_cell_shows_value_difference_and_verdict(page):
    bm25 = find(page, "#beir tbody tr:first-child td[data-system=bm25]").text
    assert "0.325" in bm25
    assert "0.32545 +0.0005" in bm25.replace("\n", " ")
    assert "✓ MATCH" in bm25
    assert "1 of 13 run: 1 MATCH" in find(page, "#leaderboard tr[data-system=bm25]").text


def test_a_likely_slip_leads_to_what_is_known_of_it(page):
    slip = find(page, "#beir .slip")
    assert slip.get_attribute("href").endswith("#beir-notes")
    assert "without dropping the query's own document" in find(page, "#beir-notes").text


def test_a_click_on_a_header_sorts_and_a_second_turns_it(page):
    header = find(page, "#beir thead th:nth-child(2)")
    button = header.find_element("css selector", "button")
    button.click()
    assert header.get_attribute("aria-sort") == "descending"
    assert texts(page, "#beir tbody th")[:2] == ["beir/quora", "beir/trec-covid"]
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert texts(page, "#beir tbody th")[0] == "beir/scidocs"


def test_the_keyboard_sorts_too(page):
    from selenium.webdriver.common.keys import Keys

    page.execute_script("arguments[0].focus()", find(page, "#audit thead button"))
    press(page, Keys.ENTER)
    assert find(page, "#audit thead th").get_attribute("aria-sort") == "ascending"


def test_a_run_opens_down_to_its_queries_and_escape_closes(page):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    drill = find(page, f'#beir .drill[data-run="{cell().run_id}"]')
    drill.click()
    assert find(page, "#queries-title").text == "bm25 on beir/nfcorpus"
    assert texts(page, "#query-table tbody th") == ["q2", "q10", "q1"]
    find(page, "#query-table thead th:nth-child(2) button").click()
    assert texts(page, "#query-table tbody th") == ["q1", "q10", "q2"]
    find(page, "#find").send_keys("q1")
    assert [text for text in texts(page, "#query-table tbody th") if text] == ["q1", "q10"]
    assert find(page, "#count").text == "2 of 3 queries"
    find(page, "#find").send_keys(Keys.BACKSPACE, Keys.BACKSPACE)
    Select(find(page, "#against")).select_by_visible_text("jina-colbert-v2:128")
    assert texts(page, "#query-table tbody td:last-child") == ["-0.3880", "-0.3736", "+0.7000"]
    press(page, Keys.ESCAPE)
    assert not find(page, "#queries").is_displayed()
    assert page.switch_to.active_element == drill


def test_cells_with_other_judged_queries_are_not_offered_for_comparison(driver, tmp_path):
    """Older results recorded no checksum of their judgements; `evalkit compare` refuses them as well."""
    one, same, other = (cell(model=name, dataset="mine", metrics={"ndcg@10": 0.5}) for name in ("one", "same", "other"))
    for run, queries in ((one, ("q1", "q2")), (same, ("q1", "q2")), (other, ("q1", "q3"))):
        put(tmp_path, run, per_query=dict(zip(queries, (0.25, 0.75), strict=True)))
    build.write(build.build(tmp_path), tmp_path)
    for against, last in ((same, "Δ ndcg@10"), (other, "ndcg@10")):
        open_query(driver, tmp_path, one, "q1", against=against)
        assert texts(driver, "#against option") == ["nothing", "same"]
        assert texts(driver, "#query-table thead th")[-1] == last


def test_an_id_that_looks_like_markup_is_text(page):
    assert "odd" in find(page, "#runs").text
    click(page, f'#runs .drill[data-run="{ODD.run_id}"]')
    assert texts(page, "#query-table tbody th") == ["</script>"]


def test_every_number_leads_to_its_run_protocol_and_environment(page):
    find(page, f'#runs a[href="#{cell().run_id}"]').click()
    facts = find(page, f'details[id="{cell().run_id}"]')
    assert facts.get_attribute("open")
    assert "k1\n0.9" in facts.text
    assert "packages.ranx\n0.3.21" in facts.text


def test_light_and_dark_turn_over_by_a_click(page):
    def background():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    before = background()
    find(page, "#theme").click()
    assert background() != before
    find(page, "#theme").click()
    assert background() == before


def test_the_systems_choice_of_dark_is_followed(tmp_path_factory, results_dir):
    driver = browser(tmp_path_factory, "--force-dark-mode")
    try:
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        driver.get(f"file://{results_dir}/site/index.html")
        assert driver.execute_script("return document.documentElement.dataset.theme") == "dark"
    finally:
        driver.quit()


def test_rows_without_a_measurement_can_be_hidden(page):
    find(page, "#measured").click()
    assert [text for text in texts(page, "#beir tbody th") if text] == ["beir/nfcorpus", "beir/arguana"]
    assert page.current_url.endswith("#?measured=1")


# ---- filters


def choose(page, name, value):
    from selenium.webdriver.support.select import Select

    Select(find(page, f"#by-{name}")).select_by_visible_text(value)


def shown(page, selector):
    return [element.text for element in page.find_elements("css selector", selector) if element.is_displayed()]


def test_filters_leave_the_rows_and_columns_that_fit_and_stand_in_the_address(page):
    choose(page, "system", "bm25")
    choose(page, "verdict", "MATCH")
    assert shown(page, "#beir tbody th") == ["beir/nfcorpus"]
    assert [text.splitlines()[0] for text in shown(page, "#beir thead th")] == ["dataset", "bm25"]
    assert [text.splitlines()[0] for text in shown(page, "#cells tbody th")] == ["bm25"]
    assert find(page, "#fits").text.startswith("1 of the card’s 143 cells match")
    assert page.current_url.endswith("#?system=bm25&verdict=MATCH")
    assert "no row fits" in page.execute_script(
        "return getComputedStyle(document.querySelector('#miracl h2'), '::after').content"
    )
    assert shown(page, "#own tbody th") == []  # nobody has published a score on the demo
    find(page, "#clear").click()
    assert len(shown(page, "#beir tbody th")) == 13
    assert page.current_url.endswith("#")


def test_an_address_opens_the_page_as_it_was_filtered(page, results_dir):
    page.get("about:blank")
    page.get(f"file://{results_dir}/site/index.html#cells?system=jina-colbert-v2:64&dataset=beir&language=en")
    assert [text.splitlines()[0] for text in shown(page, "#cells tbody th")] == ["jina-colbert-v2:64"] * 5
    assert find(page, "#by-dataset").get_attribute("value") == "beir"
    assert shown(page, "#miracl tbody th") == []
    page.get(f"file://{results_dir}/site/index.html#?language=sw")
    page.refresh()
    assert shown(page, "#miracl tbody th") == ["miracl/sw"]


def test_a_verdict_in_the_head_filters_the_cells_and_back_takes_it_back(page):
    find(page, "ul.tally li:nth-child(2) a").click()
    assert page.current_url.endswith("#cells?verdict=PROTOCOL-DIFFERS")
    assert [text.splitlines()[0] for text in shown(page, "#cells tbody th")] == ["bm25"]
    page.back()
    assert find(page, "#by-verdict").get_attribute("value") == ""
    assert len(shown(page, "#beir tbody th")) == 13


def test_a_link_within_the_page_keeps_the_filters(page):
    choose(page, "dataset", "beir/nfcorpus")
    find(page, "nav a[href='#runs']").click()
    assert page.current_url.endswith("#runs?dataset=beir/nfcorpus")
    assert shown(page, "#own tbody th") == []
    assert shown(page, "#runs tbody th") == ["bm25", "jina-colbert-v2", "jina-colbert-v2 ≠", "jina-colbert-v2"]


# ---- commands


@pytest.fixture
def clipboard(page):
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    return lambda: page.execute_async_script("navigator.clipboard.readText().then(arguments[0])")


def test_every_cell_s_command_is_copied_by_a_click(page, clipboard):
    find(page, "#all-cells summary").click()
    row = find(
        page, '#cells tr[data-dataset="msmarco/dev-small|msmarco"][data-system="jina-colbert-v2|jina-colbert-v2:96"]'
    )
    row.find_element("css selector", ".copy").click()
    assert find(page, "#toast").text == "Copied: evalkit run model=jina-colbert-v2 dim=96 dataset=msmarco/dev-small"
    assert clipboard() == "evalkit run model=jina-colbert-v2 dim=96 dataset=msmarco/dev-small"
    commands = texts(page, "#cells tbody code")
    assert len(commands) == len(set(commands)) == 143
    click(page, "#beir tbody tr:nth-child(2) td[data-system=bm25] .copy")
    assert clipboard() == "evalkit run model=bm25 dataset=beir/fiqa"


def test_a_run_s_command_has_its_own_settings(page, clipboard):
    click(page, '#own [data-system="bm25"] .copy')
    assert clipboard() == (
        "evalkit run model=bm25 dataset=demo dataset.demo.documents=60 dataset.demo.queries=4 search.depth=200"
    )


def test_a_view_is_copied_as_a_link(page, clipboard):
    choose(page, "verdict", "MATCH")
    find(page, "#link").click()
    assert clipboard() == page.current_url
    assert clipboard().endswith("/site/index.html#?verdict=MATCH")


def test_cells_link_to_the_card_and_to_the_files_of_their_run(page, results_dir):
    find(page, "#all-cells summary").click()
    row = find(page, '#cells tr[data-dataset="beir/nfcorpus|beir"][data-system="bm25"]')
    links = [link.get_attribute("href") for link in row.find_elements("css selector", "a")]
    assert links[0] == "https://huggingface.co/jinaai/jina-colbert-v2"
    run = (results_dir / "runs" / cell().run_id).as_uri()
    assert links[1:] == [f"{run}/run.trec.gz", f"{run}/scores.json", f"{run}/config.yaml"]


# ---- drill-down


def test_a_drill_down_has_an_address_of_its_own(page, results_dir):
    click(page, f'#own .drill[data-run="{on_the_demo("bm25").run_id}"]')
    query = DEMO.queries[0]
    find(page, f'#query-table .query[data-query="{query.id}"]').click()
    address = page.current_url
    assert address.endswith(f"#?run={on_the_demo('bm25').run_id}&query={query.id}")
    page.get("about:blank")
    page.get(address)
    assert find(page, "#queries-title").text == "bm25 on demo"
    assert find(page, "#detail h3").text == f"Query {query.id}"
    assert find(page, "#detail blockquote").text == query.text
    find(page, "#close").click()
    assert page.current_url.endswith("#")


def open_query(page, results_dir, run, query, against=""):
    page.get("about:blank")
    against = f"&against={against.run_id}" if against else ""
    page.get(f"file://{results_dir}/site/index.html#?run={run.run_id}&query={query}{against}")


def test_a_grade_that_does_not_fit_the_page_is_not_shown_as_another(driver, tmp_path):
    run = cell(dataset="mine")
    put(tmp_path, run, run={"q1": hits("d1", "d2"), "q2": hits("d1")}, qrels={"q1": {"d1": 300, "d2": 253}, "q2": {}})
    build.write(build.build(tmp_path), tmp_path)
    open_query(driver, tmp_path, run, "q1")
    grades = ["1 d1 ✓ relevant, grade 254 or more", "2 d2 ✓ relevant, grade 253"]
    assert texts(driver, "#detail tbody tr") == grades


def test_a_query_shows_its_hits_with_their_judgements(page, results_dir):
    open_query(page, results_dir, on_the_demo("bm25"), DEMO.queries[1].id)
    assert texts(page, "#detail tbody tr") == ["1 d1 unjudged", "2 d2 ✓ relevant, grade 2", "3 d3 ✗ not relevant"]
    said = find(page, "#detail").text
    assert "2 judged relevant; the first of them at rank 2." in said
    assert "no token vectors" in said


def test_another_run_s_hits_stand_below_and_a_pair_s_tokens_are_a_command_away(page, results_dir, clipboard):
    run, other = on_the_demo("bm25"), on_the_demo("mine", dim=64)
    query = DEMO.queries[1].id
    open_query(page, results_dir, run, query, against=other)
    assert texts(page, "#detail h3") == [f"Query {query}", "bm25", "mine:64"]
    find(page, "#detail .copy").click()
    assert clipboard() == f"evalkit explain {other.run_id} --query {query} --document d2"


def test_what_the_results_do_not_hold_is_said(page, results_dir):
    open_query(page, results_dir, cell(), "q2")
    said = find(page, "#detail").text
    assert "Its text is not stored in results; it is in the dataset beir/nfcorpus." in said
    assert "judgements are not stored in results" in said
    assert texts(page, "#detail tbody tr") == ["1 d8"]
    open_query(page, results_dir, cell(), "q10")
    assert "No hits." in find(page, "#detail").text
    assert "texts of queries and documents" in find(page, "footer").text


def test_the_paired_test_is_the_command_line_s(page, results_dir):
    run, other = on_the_demo("bm25"), on_the_demo("mine", dim=64)
    open_query(page, results_dir, run, DEMO.queries[0].id, against=other)
    said = find(page, "#paired").text
    ours, theirs = (0.25, 0.5, 0.75, 0.5), (0.5, 0.25, 0.5, 0.75)
    # The differences are -.25, .25, .25 and -.25: their mean is 0, their standard error .25 × sqrt(4/3) / 2 = .1443.
    assert "bm25 minus mine:64: Δ ndcg@10 +0.0000, 95 % from −0.2829 to +0.2829" in said
    assert f"p = {paired_p(theirs, ours):.4f}" in said
    assert "Better on 2, worse on 2, equal on 0." in said


@pytest.mark.parametrize(
    "differences",
    [(0.1, 0.3, 0.2, 0.05), (0.5, -0.1, 0.2), (0.01,) * 40 + (-0.005,) * 30, (0.3, 0.29, 0.31, 0.3, 0.28)],
)
def test_p_values_are_scipy_s(page, differences):
    said = page.execute_script(
        "return paired({system: 'a', main: 'm'}, {system: 'b'}, arguments[0])", list(differences)
    )
    sign, value = re.search(r"p ([=<]) ([\d.]+)", said).groups()
    p = paired_p([0.0] * len(differences), differences)
    assert p < float(value) if sign == "<" else float(value) == pytest.approx(p, abs=5e-5)


# ---- plots and phones


def test_the_heatmap_comes_first_of_the_dims(page):
    assert texts(page, "#dims h3")[0] == "What a smaller dim keeps"
    card = find(page, "#dims table.heat")
    rows = [
        [cell.text.split("\n")[0] for cell in row.find_elements("css selector", "td")]
        for row in card.find_elements("css selector", "tbody tr")
    ]
    assert [row[0] for row in rows] == ["100.0 %", "98.3 %", "100.3 %"]  # nfcorpus: .346, .340 and .347
    assert "share of dim 128’s quality kept" in card.find_element("css selector", "caption").text


def test_the_dims_plots_show_every_point_and_paired_differences(page):
    titles = texts(page, "#dims figcaption")
    assert titles[0] == "jina-colbert-v2 on beir/nfcorpus"
    assert titles[1].startswith("Published: jina-colbert-v2, mean of nfcorpus, fiqa")
    assert titles[2] == "Measured: jina-colbert-v2 on beir/nfcorpus"
    # q1, q2 and q10 change by -.1, 0 and .103: by .001 in the mean.
    assert "dim 64, +0.0010" in find(page, "#dims figure svg").get_attribute("aria-label")
    assert len(page.find_elements("css selector", "#dims circle")) == 1 + 3 + 2
    assert len(texts(page, "#dims .key li")) == 2


def test_every_table_has_a_caption(page):
    tables = page.find_elements("css selector", "table")
    assert len(tables) >= 13
    assert [table for table in tables if not table.find_elements("css selector", "caption")] == []


@pytest.fixture
def phone(page):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.refresh()
    yield page
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_phone_shows_a_card_per_row_and_nothing_beside_its_edge(phone):
    width, inner = phone.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner == 390
    assert not find(phone, "#beir thead").is_displayed()
    row = find(phone, "#beir tbody tr")
    assert row.text.splitlines()[0] == "beir/nfcorpus"
    label = "return getComputedStyle(arguments[0], '::before').content"
    last = row.find_element("css selector", "td:last-child")
    assert phone.execute_script(label, last) == '"bm25, quoted"'
    for details in phone.find_elements("css selector", "main section > details"):
        phone.execute_script("arguments[0].open = true", details)
    overflowing = phone.execute_script(
        "return [...document.querySelectorAll('table.cards')].filter((table) => table.parentNode.scrollWidth > "
        "table.parentNode.clientWidth).map((table) => table.caption.textContent)"
    )
    assert overflowing == []
    cells = phone.execute_script(
        "return [...document.querySelectorAll('table.cards td')].filter((cell) => !cell.dataset.label && "
        "!cell.classList.contains('none')).length"
    )
    assert cells == 0
    find(phone, "#runs .drill").click()
    assert phone.execute_script("return document.getElementById('queries').getBoundingClientRect().width") <= 390


def test_cards_are_still_a_table_to_a_screen_reader(phone):
    kinds = ["", " tbody", " tbody tr", " tbody th", " tbody td"]
    roles = [find(phone, f"#beir table{kind}").get_attribute("role") for kind in kinds]
    assert roles == ["table", "rowgroup", "row", "rowheader", "cell"]


def test_the_heatmap_scrolls_by_itself_on_a_phone(phone):
    region = find(phone, "#dims .scroll")
    moved = phone.execute_script("arguments[0].scrollLeft = 60; return arguments[0].scrollLeft", region)
    assert moved > 0
    assert region.get_attribute("tabindex") == "0"  # by the arrow keys too


def tab_to(page, selector, *, most=80):
    """Press the tab key until it has brought the focus to an element, which then has a visible outline."""
    from selenium.webdriver.common.keys import Keys

    for _ in range(most):
        press(page, Keys.TAB)
        here = page.switch_to.active_element
        if page.execute_script("return arguments[0].matches(arguments[1])", here, selector):
            assert page.execute_script("return getComputedStyle(arguments[0]).outlineStyle", here) == "solid"
            return here
    pytest.fail(f"{most} presses of the tab key do not reach {selector}")


def test_the_tab_enter_and_escape_keys_alone_reach_every_main_action(page):
    from selenium.webdriver.common.keys import Keys

    page.refresh()
    tab_to(page, ".skip", most=1)
    theme = page.execute_script("return document.documentElement.dataset.theme")
    tab_to(page, "#theme")
    press(page, Keys.ENTER)
    assert page.execute_script("return document.documentElement.dataset.theme") != theme
    press(page, Keys.ENTER)
    tab_to(page, "nav a[href='#beir']")
    press(page, Keys.ENTER)
    header = tab_to(page, "#beir thead th:nth-child(2) button")
    press(page, Keys.ENTER)
    assert header.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    opener = tab_to(page, "#beir .drill")
    press(page, Keys.ENTER)
    assert find(page, "#queries").is_displayed()
    tab_to(page, "#find")
    press(page, "q10")
    assert find(page, "#count").text == "1 of 3 queries"
    press(page, Keys.ESCAPE)
    if find(page, "#queries").is_displayed():  # the first only empties the search field
        press(page, Keys.ESCAPE)
    assert not find(page, "#queries").is_displayed()
    assert page.switch_to.active_element == opener
    tab_to(page, "#provenance summary", most=400)
    press(page, Keys.ENTER)
    assert find(page, "#provenance details").get_attribute("open")
