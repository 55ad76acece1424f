//! Pictures of a run: few nodes as rows of what they held when, many as the memory in use over time.

use std::fmt::Write;
use std::time::Duration;

use super::report::{Outcome, Report, Sample, Span};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 150.0;
const ROW: f64 = 48.0;
/// More nodes than this are drawn as one area.
const ROWS_MAX: usize = 24;
const AREA: f64 = 160.0;
const COLOURS: [&str; 8] = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f"];

impl Report {
    /// All policies below each other, on the same time axis. What waits for the rest of its job is hatched.
    pub fn svg(&self) -> String {
        let heights: Vec<f64> = self.outcomes.iter().map(height).collect();
        let total: f64 = heights.iter().sum::<f64>() + 30.0;
        let mut svg = String::new();
        let mut put = |text: std::fmt::Arguments<'_>| svg.write_fmt(text).expect("writing to a String cannot fail");
        put(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{total}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<defs><pattern id=\"held\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
             patternTransform=\"rotate(45)\"><rect width=\"3\" height=\"6\" fill=\"#fff\" fill-opacity=\"0.6\"/></pattern></defs>\n\
             <rect width=\"{w}\" height=\"{total}\" fill=\"#fff\"/>\n<text x=\"10\" y=\"20\" font-size=\"14\">{}</text>\n",
            escape(&self.scenario),
            w = WIDTH + LEFT + 20.0
        ));
        let mut top = 30.0;
        for (outcome, height) in self.outcomes.iter().zip(&heights) {
            put(format_args!("{}", panel(outcome, top)));
            top += height;
        }
        put(format_args!("</svg>\n"));
        svg
    }
}

fn height(outcome: &Outcome) -> f64 {
    40.0 + if outcome.nodes.len() <= ROWS_MAX { ROW * outcome.nodes.len() as f64 } else { AREA }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn x(at: Duration, until: Duration) -> f64 {
    LEFT + WIDTH * at.as_secs_f64() / until.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn panel(outcome: &Outcome, top: f64) -> String {
    let mut svg = String::new();
    let Outcome { policy, placed, jobs, stranded, deadlocked, .. } = outcome;
    writeln!(
        svg,
        "<text x=\"10\" y=\"{:.1}\" font-weight=\"bold\">{}: {placed} of {jobs} placed, {stranded} stranded, {deadlocked} deadlocked</text>",
        top + 16.0,
        escape(policy)
    )
    .expect("writing to a String cannot fail");
    let body = if outcome.nodes.len() <= ROWS_MAX { rows(outcome, top + 24.0) } else { area(outcome, top + 24.0) };
    svg + &body
}

/// One row a node; its parts are stacked by memory in the order in which they came.
fn rows(outcome: &Outcome, top: f64) -> String {
    let mut svg = String::new();
    for (index, (node, memory)) in outcome.nodes.iter().enumerate() {
        let y = top + ROW * index as f64;
        writeln!(
            svg,
            "<text x=\"10\" y=\"{:.1}\">{} {:.1} GB</text><rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{:.1}\" fill=\"#eee\"/>",
            y + ROW / 2.0,
            escape(node),
            *memory as f64 / 1e9,
            ROW - 4.0
        )
        .expect("writing to a String cannot fail");
        let mut spans: Vec<&Span> = outcome.spans.iter().filter(|span| span.node == *node).collect();
        spans.sort_by_key(|span| (span.from, span.job));
        let scale = (ROW - 4.0) / (*memory).max(1) as f64;
        let mut stacked: Vec<(&Span, i64)> = Vec::new();
        for span in spans {
            let base = lowest_gap(&stacked, span);
            svg.push_str(&bar(
                span,
                y + ROW - 4.0 - (base + span.memory) as f64 * scale,
                span.memory as f64 * scale,
                outcome.until,
            ));
            stacked.push((span, base));
        }
    }
    svg
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

fn bar(span: &Span, y: f64, height: f64, until: Duration) -> String {
    let (from, to) = (x(span.from, until), x(span.to, until));
    let (width, colour) = ((to - from).max(0.5), COLOURS[span.job % COLOURS.len()]);
    let rectangle = |fill: &str| {
        format!(
            "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" stroke=\"#fff\" stroke-width=\"0.5\"/>\n"
        )
    };
    let mut svg = rectangle(colour);
    if span.waiting {
        svg.push_str(&rectangle("url(#held)"));
    }
    svg
}

fn area(outcome: &Outcome, top: f64) -> String {
    let y = |bytes: i64| top + AREA * (1.0 - bytes as f64 / outcome.capacity.max(1) as f64);
    let shape = |of: &dyn Fn(&Sample) -> i64| -> String {
        let mut points = format!("{LEFT:.1},{:.1}", y(0));
        let mut last = 0;
        for sample in &outcome.samples {
            let at = x(sample.at, outcome.until);
            write!(points, " {at:.1},{:.1} {at:.1},{:.1}", y(last), y(of(sample)))
                .expect("writing to a String cannot fail");
            last = of(sample);
        }
        let end = x(outcome.until, outcome.until);
        write!(points, " {end:.1},{:.1} {end:.1},{:.1}", y(last), y(0)).expect("writing to a String cannot fail");
        points
    };
    format!(
        "<rect x=\"{LEFT}\" y=\"{top:.1}\" width=\"{WIDTH}\" height=\"{AREA}\" fill=\"#eee\"/>\n\
         <polygon points=\"{}\" fill=\"#e15759\"/>\n<polygon points=\"{}\" fill=\"#4e79a7\"/>\n\
         <text x=\"10\" y=\"{:.1}\">{} nodes</text>\n",
        shape(&|sample| sample.useful + sample.held),
        shape(&|sample| sample.useful),
        top + AREA / 2.0,
        outcome.nodes.len()
    )
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
}
