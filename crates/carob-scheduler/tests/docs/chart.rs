//! A line chart as SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 220.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = 60.0;
const INK: &str = "#1f2933";
const PALE_INK: &str = "#66727f";
const COLOURS: [&str; 3] = ["#d9822b", "#3b6ea5", "#3f9c78"];
/// Distances of lines across the chart.
const STEPS: [f64; 8] = [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0];
/// Names beside the ends of lines are kept so far apart.
const LINE_HEIGHT: f64 = 34.0;

pub(crate) struct Line {
    /// What it is, a colon, and what that means.
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) subtitle: &'static str,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) lines: Vec<Line>,
}

impl Chart {
    pub(crate) fn svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
             <text x=\"24\" y=\"34\" font-size=\"20\" font-weight=\"bold\">{}</text>\n\
             <text x=\"24\" y=\"55\" fill=\"{PALE_INK}\">{}</text>\n\
             <text x=\"24\" y=\"80\" font-weight=\"bold\">{}</text>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-weight=\"bold\">{}</text>\n",
            self.title,
            self.subtitle,
            self.y,
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 16.0,
            self.x
        );
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let least = all().map(|(x, _)| *x).fold(f64::MAX, f64::min);
        let most = all().map(|(x, _)| *x).fold(f64::MIN, f64::max);
        let highest = all().map(|(_, y)| *y).fold(1.0, f64::max);
        let step = STEPS.into_iter().find(|step| highest / step <= 6.0).unwrap_or(highest);
        let top = (highest / step).ceil() * step;
        let x = |value: f64| LEFT + (WIDTH - RIGHT - LEFT) * (value - least) / (most - least).max(f64::MIN_POSITIVE);
        let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top;
        self.grid(&mut svg, (top, step), &x, &y);
        self.draw(&mut svg, &x, &y);
        svg.push_str("</svg>\n");
        svg
    }

    fn grid(&self, svg: &mut String, (top, step): (f64, f64), x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) {
        let mut value = 0.0;
        while value <= top {
            let at = y(value);
            add(
                svg,
                format_args!(
                    "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"{PALE_INK}\" stroke-opacity=\"0.25\"/>\n\
                     <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"11\" fill=\"{PALE_INK}\">{value:.0}{}</text>\n",
                    WIDTH - RIGHT,
                    LEFT - 8.0,
                    at + 4.0,
                    self.unit
                ),
            );
            value += step;
        }
        let mut marks: Vec<f64> = self.lines.iter().flat_map(|line| &line.points).map(|(x, _)| *x).collect();
        marks.sort_by(f64::total_cmp);
        marks.dedup();
        for mark in marks {
            let at = x(mark);
            add(
                svg,
                format_args!(
                    "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\" fill=\"{PALE_INK}\">{mark}</text>\n",
                    HEIGHT - BOTTOM + 18.0
                ),
            );
        }
    }

    fn draw(&self, svg: &mut String, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) {
        let mut names: Vec<(f64, &Line, &str)> = Vec::new();
        for (line, colour) in self.lines.iter().zip(COLOURS) {
            let points: Vec<String> = line.points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
            let points = points.join(" ");
            add(
                svg,
                format_args!(
                    "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>\n"
                ),
            );
            for (a, b) in &line.points {
                add(
                    svg,
                    format_args!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n", x(*a), y(*b)),
                );
            }
            names.push((line.points.last().map_or(0.0, |(_, value)| y(*value)), line, colour));
        }
        names.reverse();
        names.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
        let mut below = HEIGHT;
        for (at, line, colour) in names {
            let at = at.min(below - LINE_HEIGHT);
            below = at;
            let (name, meaning) = line.name.split_once(": ").unwrap_or((line.name, ""));
            add(
                svg,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\"><tspan font-weight=\"bold\">{name}</tspan>\
                     <tspan x=\"{:.1}\" dy=\"14\" font-size=\"11\">{meaning}</tspan></text>\n",
                    WIDTH - RIGHT + 14.0,
                    at + 2.0,
                    WIDTH - RIGHT + 14.0
                ),
            );
        }
    }
}

fn add(svg: &mut String, element: std::fmt::Arguments<'_>) {
    svg.write_fmt(element).expect("writing to a String cannot fail");
}
