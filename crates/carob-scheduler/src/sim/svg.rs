//! Pictures of a run: few nodes as rows of what they held when, many as the memory in use over time.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::report::{Outcome, Report, Sample, Span};

/// All lengths are in pixels.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 112.0;
const RIGHT: f64 = 24.0;
const PLOT: f64 = WIDTH - LEFT - RIGHT;
const HEAD: f64 = 84.0;
const CAPTION: f64 = 30.0;
const AXIS: f64 = 34.0;
const ROW: f64 = 42.0;
const GAP: f64 = 6.0;
/// More nodes than this are drawn as one area.
const ROWS_MAX: usize = 24;
const AREA: f64 = 150.0;
/// An area has a point for each so many pixels, to keep the file small.
const GRAIN: f64 = 3.0;
/// So many marks on the time axis at most.
const TICKS_MAX: u64 = 8;

const INK: &str = "#1f2933";
const PALE_INK: &str = "#66727f";
const FREE: &str = "#eef1f4";
const WORK: &str = "#3b6ea5";
const HELD: &str = "#d9822b";
const COLOURS: [&str; 8] = ["#3b6ea5", "#3f9c78", "#8a63b0", "#c2557a", "#2f9aa8", "#7a8b3a", "#a5673f", "#5b63b7"];

/// A picture in the making.
#[derive(Default)]
struct Canvas(String);

impl Canvas {
    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        self.0.write_fmt(element).expect("writing to a String cannot fail");
        self.0.push('\n');
    }

    fn rectangle(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        self.put(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>"
        ));
    }

    fn text(&mut self, (x, y): (f64, f64), style: &str, text: impl Display) {
        self.put(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{}</text>", escape(&text.to_string())));
    }
}

impl Report {
    /// All policies below each other, on the same time axis. What waits for the rest of its job is hatched.
    pub fn svg(&self) -> String {
        let height = HEAD + self.outcomes.iter().map(height).sum::<f64>();
        let mut canvas = Canvas::default();
        canvas.put(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
             <defs><pattern id=\"held\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" \
             patternTransform=\"rotate(45)\"><rect width=\"3.5\" height=\"7\" fill=\"#fff\" fill-opacity=\"0.65\"/></pattern></defs>"
        ));
        canvas.rectangle((0.0, 0.0), (WIDTH, height), "#fff");
        canvas.text((24.0, 34.0), "font-size=\"20\" font-weight=\"bold\"", &self.scenario);
        let rows = self.outcomes.first().is_some_and(|outcome| outcome.nodes.len() <= ROWS_MAX);
        self.legend(&mut canvas, rows);
        let mut top = HEAD;
        for outcome in &self.outcomes {
            panel(&mut canvas, outcome, top);
            top += self::height(outcome);
        }
        canvas.put(format_args!("</svg>"));
        canvas.0
    }

    fn legend(&self, canvas: &mut Canvas, rows: bool) {
        let nodes = self.outcomes.first().map_or(0, |outcome| outcome.nodes.len());
        let what = if rows { "memory of each node".to_owned() } else { format!("memory of all {nodes} nodes") };
        let (work, held) = if rows { ("at work, a colour a job", WORK) } else { ("at work", HELD) };
        canvas.text(
            (24.0, 58.0),
            &format!("fill=\"{PALE_INK}\""),
            format_args!("{what} over time, seed {}", self.seed),
        );
        let mut x = 400.0;
        for (fill, hatched, label) in
            [(WORK, false, work), (held, rows, "held, waiting for the rest of its job"), (FREE, false, "free")]
        {
            canvas.rectangle((x, 47.0), (14.0, 14.0), fill);
            if hatched {
                canvas.rectangle((x, 47.0), (14.0, 14.0), "url(#held)");
            }
            canvas.text((x + 20.0, 58.0), "", label);
            x += 52.0 + 6.2 * label.len() as f64;
        }
    }
}

fn height(outcome: &Outcome) -> f64 {
    CAPTION + AXIS + if outcome.nodes.len() <= ROWS_MAX { ROW * outcome.nodes.len() as f64 } else { AREA }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn x(at: Duration, until: Duration) -> f64 {
    LEFT + PLOT * at.as_secs_f64() / until.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn panel(canvas: &mut Canvas, outcome: &Outcome, top: f64) {
    let Outcome { policy, placed, jobs, stranded, deadlocked, wasted_gb_seconds, .. } = outcome;
    let mut summary = format!("{placed} of {jobs} placed");
    for (count, what) in [(*stranded, "stranded"), (*deadlocked, "deadlocked")] {
        if count > 0 {
            write!(summary, ", {count} {what}").expect("writing to a String cannot fail");
        }
    }
    if *wasted_gb_seconds >= 0.05 {
        write!(summary, ", {wasted_gb_seconds:.1} GB·s held for nothing").expect("writing to a String cannot fail");
    }
    canvas.text((24.0, top + 18.0), "font-size=\"14\" font-weight=\"bold\"", policy);
    canvas.text((LEFT + 40.0, top + 18.0), &format!("fill=\"{PALE_INK}\""), summary);
    let body = top + CAPTION;
    let bottom = top + height(outcome) - AXIS;
    if outcome.nodes.len() <= ROWS_MAX {
        rows(canvas, outcome, body)
    } else {
        area(canvas, outcome, body)
    }
    axis(canvas, outcome.until, body, bottom);
}

/// One row a node; its parts are stacked by memory in the order in which they came.
fn rows(canvas: &mut Canvas, outcome: &Outcome, top: f64) {
    for (index, (node, memory)) in outcome.nodes.iter().enumerate() {
        let y = top + ROW * index as f64;
        let inner = ROW - GAP;
        let right = LEFT - 10.0;
        canvas.text((right, y + 16.0), "text-anchor=\"end\"", node);
        let size = format!("{:.1} GB", *memory as f64 / 1e9);
        canvas.text((right, y + 31.0), &format!("text-anchor=\"end\" font-size=\"11\" fill=\"{PALE_INK}\""), size);
        canvas.rectangle((LEFT, y), (PLOT, inner), FREE);
        let mut spans: Vec<&Span> = outcome.spans.iter().filter(|span| span.node == *node).collect();
        spans.sort_by_key(|span| (span.from, span.job));
        let scale = inner / (*memory).max(1) as f64;
        let mut stacked: Vec<(&Span, i64)> = Vec::new();
        for span in spans {
            let base = lowest_gap(&stacked, span);
            let low = y + inner - base as f64 * scale;
            bar(canvas, span, low, span.memory as f64 * scale, outcome.until);
            stacked.push((span, base));
        }
    }
}

/// The lowest height at which a span overlaps none of those that are drawn.
fn lowest_gap(stacked: &[(&Span, i64)], span: &Span) -> i64 {
    let mut taken: Vec<(i64, i64)> = stacked
        .iter()
        .filter(|(other, _)| other.from < span.to && span.from < other.to)
        .map(|(other, base)| (*base, base + other.memory))
        .collect();
    taken.sort_unstable();
    let mut base = 0;
    for (from, to) in taken {
        if base + span.memory <= from {
            break;
        }
        base = base.max(to);
    }
    base
}

fn bar(canvas: &mut Canvas, span: &Span, low: f64, height: f64, until: Duration) {
    let (from, to) = (x(span.from, until), x(span.to, until));
    // A line of white is left between neighbours.
    let (at, size) = ((from, low - height), ((to - from - 0.8).max(0.6), (height - 0.8).max(0.6)));
    canvas.rectangle(at, size, COLOURS[span.job % COLOURS.len()]);
    if span.waiting {
        canvas.rectangle(at, size, "url(#held)");
    }
}

fn area(canvas: &mut Canvas, outcome: &Outcome, top: f64) {
    let share = |bytes: i64| bytes as f64 / outcome.capacity.max(1) as f64;
    let y = |share: f64| top + AREA * (1.0 - share);
    canvas.rectangle((LEFT, top), (PLOT, AREA), FREE);
    type Of = fn(&Sample) -> i64;
    let layers: [(Of, &str); 2] = [(|sample| sample.useful + sample.held, HELD), (|sample| sample.useful, WORK)];
    for (of, fill) in layers {
        let mut points = format!("{LEFT:.0},{:.1}", y(0.0));
        let mut column = LEFT;
        let mut last = 0.0;
        for sample in &outcome.samples {
            let at = x(sample.at, outcome.until);
            while column + GRAIN <= at {
                column += GRAIN;
                write!(points, " {column:.0},{:.1}", y(last)).expect("writing to a String cannot fail");
            }
            last = share(of(sample));
        }
        let end = LEFT + PLOT;
        write!(points, " {end:.0},{:.1} {end:.0},{:.1}", y(last), y(0.0)).expect("writing to a String cannot fail");
        canvas.put(format_args!("<polygon points=\"{points}\" fill=\"{fill}\"/>"));
    }
    let pale = format!("text-anchor=\"end\" font-size=\"11\" fill=\"{PALE_INK}\"");
    for percent in [0, 50, 100] {
        canvas.text((LEFT - 10.0, y(f64::from(percent) / 100.0) + 4.0), &pale, format_args!("{percent} %"));
    }
}

/// Marks at round times, with thin lines up through the panel.
fn axis(canvas: &mut Canvas, until: Duration, top: f64, bottom: f64) {
    let (unit, name) = match until.as_secs() {
        0..=180 => (1, "s"),
        181..=7200 => (60, "min"),
        _ => (3600, "h"),
    };
    let steps = [1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200];
    let total = until.as_secs() / unit;
    let step = steps.into_iter().find(|step| total / step <= TICKS_MAX).unwrap_or(total.max(1));
    for mark in (0..=total).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let at = x(Duration::from_secs(mark * unit), until);
        canvas.put(format_args!(
            "<line x1=\"{at:.1}\" y1=\"{top:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"{PALE_INK}\" stroke-opacity=\"0.25\"/>",
            bottom + 4.0
        ));
        let label = if mark == 0 { "0".to_owned() } else { format!("{mark} {name}") };
        let style = format!("text-anchor=\"middle\" font-size=\"11\" fill=\"{PALE_INK}\"");
        canvas.text((at, bottom + 17.0), &style, label);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(job: usize, from: u64, to: u64, memory: i64) -> Span {
        let (from, to) = (Duration::from_secs(from), Duration::from_secs(to));
        Span { node: "n".to_owned(), job, from, to, memory, waiting: false }
    }

    #[test]
    fn spans_are_stacked_without_overlap() {
        let (first, second, third) = (span(0, 0, 10, 5), span(1, 5, 15, 3), span(2, 12, 20, 4));
        assert_eq!(lowest_gap(&[], &first), 0);
        assert_eq!(lowest_gap(&[(&first, 0)], &second), 5);
        assert_eq!(lowest_gap(&[(&first, 0), (&second, 5)], &third), 0, "the first is over by then");
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }

    #[test]
    fn the_time_axis_has_a_handful_of_round_marks() {
        for (seconds, expected) in
            [(60, vec!["0", "10 s", "60 s"]), (300, vec!["0", "1 min", "5 min"]), (86_400, vec!["5 h"])]
        {
            let mut canvas = Canvas::default();
            axis(&mut canvas, Duration::from_secs(seconds), 0.0, 10.0);
            let labels = canvas.0.matches("<text").count() as u64;
            assert!((4..=TICKS_MAX + 1).contains(&labels), "{labels} marks on {seconds} s");
            assert!(expected.iter().all(|label| canvas.0.contains(&format!(">{label}<"))), "{}", canvas.0);
        }
    }
}
