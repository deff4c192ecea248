//! The three diagrams.

use std::collections::{BTreeMap, BTreeSet};

use plotters::chart::ChartContext;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::scale::{Axis, duration, log, unit};
use super::{
    Area, Drawn, FAULT, INK, LINE, MARGIN, PALE, PHASES, Page, Phase, Sample, Takeover, bold,
    plain, top, write,
};

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// The phases of a takeover: amber, rose and green.
const SHADES: [(&str, RGBColor); 3] = [
    ("detect", RGBColor(0xf2, 0xb8, 0x3b)),
    ("switch", RGBColor(0xe0, 0x6c, 0x75)),
    ("first command", RGBColor(0x58, 0xb3, 0x8a)),
];
/// Where what the colours mean begins, beside a heading.
const LEGEND: i32 = 150;
/// About the width of one of its characters.
const CHARACTER: i32 = 8;
/// Of points that would be drawn over each other one is kept: those in one square of so many pixels.
const SQUARE: f64 = 2.0;
/// Steps of the distribution in each decade.
const STEPS: f64 = 20.0;

/// Latency of every command over the time of its answer.
pub(super) fn over_time(area: &Area, page: &Page) -> Drawn {
    heading(
        area,
        MARGIN,
        "Latency of each command, as its client saw it",
    )?;
    let Some((first_ns, last_ns)) = extent(page) else {
        return nothing(area);
    };
    // Times may count from any instant: the axis begins with the first command.
    let (size, unit) = unit(last_ns - first_ns);
    let at = |ns: u64| (ns as f64 - first_ns as f64) / size;
    let x = Axis::linear(0.0, at(last_ns), 12);
    let y = Axis::decades(page.series.iter().map(|sample| sample.latency_ns));
    let mut chart = axes(area, &x, &y)?;
    let takeover = page.takeover.map(Takeover::in_order);
    if let Some([killed_ns, .., decided_ns]) = takeover {
        band(&mut chart, at(killed_ns), at(decided_ns), FAULT.mix(0.25))?;
        let total = duration(decided_ns - killed_ns);
        let text = format!("leader killed; {total} later the next one has decided a command");
        let right = area.dim_in_pixel().0 as i32 - MARGIN;
        let style = plain(15, FAULT).pos(top(HPos::Right));
        write(area, (right, 4), &text, 90, style)?;
    }
    mesh(&mut chart, &format!("time ({unit})"), "latency")?;
    if let Some([killed_ns, ..]) = takeover {
        vertical(&mut chart, at(killed_ns), FAULT)?;
    }
    let shown = distinct(&chart, page, at);
    dots(&mut chart, page, &shown)
}

/// The takeover by itself: commands as lines from question to answer, the phases shaded.
pub(super) fn takeover(area: &Area, page: &Page) -> Drawn {
    heading(area, MARGIN, "The takeover")?;
    let Some(instants) = page.takeover.map(Takeover::in_order) else {
        return nothing(area);
    };
    let [killed_ns, .., decided_ns] = instants;
    let (size, unit) = unit(decided_ns - killed_ns);
    let at = |ns: u64| (ns as f64 - killed_ns as f64) / size;
    let total = at(decided_ns).max(1.0);
    let x = Axis::linear(-0.25 * total, 1.35 * total, 9);
    let near = page.series.iter();
    let near = near.filter(|sample| (x.from..=x.to).contains(&at(sample.at_ns)));
    let y = Axis::decades(near.map(|sample| sample.latency_ns));
    let mut chart = axes(area, &x, &y)?;
    for (span, (_, color)) in instants.windows(2).zip(SHADES) {
        band(&mut chart, at(span[0]), at(span[1]), color.mix(0.28))?;
    }
    let desc = format!("time since the leader was killed ({unit})");
    mesh(&mut chart, &desc, "latency")?;
    vertical(&mut chart, at(killed_ns), FAULT)?;
    for ns in &instants[1..] {
        vertical(&mut chart, at(*ns), PALE)?;
    }
    let shown = distinct(&chart, page, at);
    for (sample, (end, level)) in &shown {
        let start = (end - sample.latency_ns as f64 / size).max(x.from);
        let line = PathElement::new([(start, *level), (*end, *level)], color_of(page, sample));
        chart.draw_series([line])?;
    }
    dots(&mut chart, page, &shown)?;
    phases_in_words(area, instants)
}

/// The shades of the takeover with their lengths, beside the heading.
fn phases_in_words(area: &Area, instants: [u64; 4]) -> Drawn {
    let mut left = LEGEND + 20;
    for (span, (name, color)) in instants.windows(2).zip(SHADES) {
        let text = format!("{name} {}", duration(span[1] - span[0]));
        let swatch = [(left, 7), (left + 12, 19)];
        area.draw(&Rectangle::new(swatch, color.mix(0.6).filled()))?;
        write(area, (left + 18, 5), &text, 24, plain(15, INK))?;
        left += 40 + CHARACTER * text.chars().count() as i32;
    }
    let text = format!("in all {}", duration(instants[3] - instants[0]));
    write(area, (left, 5), &text, 24, bold(15, INK))
}

/// How the latencies of each phase are distributed.
pub(super) fn distribution(area: &Area, page: &Page) -> Drawn {
    heading(area, 16, "Distribution")?;
    let shares: Vec<BTreeMap<i64, f64>> =
        page.phases.iter().take(PHASES.len()).map(share).collect();
    let steps = || shares.iter().flat_map(BTreeMap::keys).copied();
    let (Some(low), Some(high)) = (steps().min(), steps().max()) else {
        return nothing(area);
    };
    let ns = |step: i64| 10f64.powf(step as f64 / STEPS) as u64;
    let x = Axis::decades([ns(low), ns(high + 1)].into_iter());
    let each = shares.iter().flat_map(BTreeMap::values);
    let y = Axis::shares(each.copied().fold(100.0, f64::min));
    let mut chart = axes(area, &x, &y)?;
    mesh(&mut chart, "latency", "share of commands")?;
    for (shares, color) in shares.iter().zip(PHASES) {
        let outline = staircase(shares, y.from);
        chart.draw_series([Polygon::new(outline.clone(), color.mix(0.18).filled())])?;
        chart.draw_series([PathElement::new(outline, color.stroke_width(2))])?;
    }
    let each = (area.dim_in_pixel().0 as i32 - MARGIN - LEGEND) / shares.len() as i32;
    for (at, (phase, color)) in page.phases.iter().zip(PHASES).enumerate() {
        let left = LEGEND + each * at as i32;
        area.draw(&Circle::new((left, 13), 5, color.filled()))?;
        let fits = (each - 24) / CHARACTER;
        write(
            area,
            (left + 12, 5),
            &phase.name,
            fits as usize,
            plain(15, INK),
        )?;
    }
    Ok(())
}

/// The percentage of a phase's commands in each step of the logarithmic axis.
fn share(phase: &Phase) -> BTreeMap<i64, f64> {
    let total: f64 = phase
        .histogram
        .iter()
        .map(|bucket| bucket.count as f64)
        .sum();
    let mut shares = BTreeMap::new();
    for bucket in phase.histogram.iter().filter(|bucket| bucket.count > 0) {
        let middle = (log(bucket.from_ns) + log(bucket.to_ns)) / 2.0;
        let step = (middle * STEPS).floor() as i64;
        *shares.entry(step).or_insert(0.0) += 100.0 * bucket.count as f64 / total;
    }
    shares
}

/// The outline of a distribution that stands on `floor`; heights are decimal logarithms.
fn staircase(shares: &BTreeMap<i64, f64>, floor: f64) -> Vec<(f64, f64)> {
    let at = |step: i64| step as f64 / STEPS;
    let mut outline: Vec<(f64, f64)> = Vec::new();
    for (&step, share) in shares {
        let last = outline.last().map(|(x, _)| *x);
        if last.is_none_or(|x| x < at(step)) {
            outline.extend(last.map(|x| (x, floor)));
            outline.push((at(step), floor));
        }
        let level = share.log10().max(floor);
        outline.extend([(at(step), level), (at(step + 1), level)]);
    }
    outline.extend(outline.last().map(|(x, _)| (*x, floor)));
    outline
}

impl Takeover {
    /// Its instants, each moved to the one before where it is earlier.
    fn in_order(self) -> [u64; 4] {
        let detected_ns = self.detected_ns.max(self.killed_ns);
        let switched_ns = self.switched_ns.max(detected_ns);
        let decided_ns = self.decided_ns.max(switched_ns);
        [self.killed_ns, detected_ns, switched_ns, decided_ns]
    }
}

/// The first and the last instant of the page's commands and takeover, if it has commands.
fn extent(page: &Page) -> Option<(u64, u64)> {
    let times = || page.series.iter().map(|sample| sample.at_ns);
    let (first_ns, last_ns) = (times().min()?, times().max()?);
    Some(match page.takeover.map(Takeover::in_order) {
        Some([killed_ns, .., decided_ns]) => (first_ns.min(killed_ns), last_ns.max(decided_ns)),
        None => (first_ns, last_ns),
    })
}

/// Blue before the kill, red where the takeover was waited for, orange after it.
fn color_of(page: &Page, sample: &Sample) -> RGBColor {
    match page.takeover {
        Some(takeover) if sample.at_ns >= takeover.killed_ns => {
            let asked_ns = sample.at_ns.saturating_sub(sample.latency_ns);
            if asked_ns < takeover.decided_ns {
                FAULT
            } else {
                PHASES[1]
            }
        }
        _ => PHASES[0],
    }
}

/// The commands within the diagram with their positions; see [`SQUARE`].
fn distinct<'a>(
    chart: &Chart,
    page: &'a Page,
    at: impl Fn(u64) -> f64,
) -> Vec<(&'a Sample, (f64, f64))> {
    let (width, height) = chart.plotting_area().dim_in_pixel();
    let (x, y) = (chart.x_range(), chart.y_range());
    let square = |share: f64, pixels: u32| (share * f64::from(pixels) / SQUARE) as i64;
    let mut taken = BTreeSet::new();
    let mut shown = Vec::new();
    for sample in &page.series {
        let (time, level) = (at(sample.at_ns), log(sample.latency_ns));
        let column = square((time - x.start) / (x.end - x.start), width);
        let row = square((level - y.start) / (y.end - y.start), height);
        let within = (x.start..=x.end).contains(&time);
        if within && taken.insert((column, row, color_of(page, sample).rgb())) {
            shown.push((sample, (time, level)));
        }
    }
    shown
}

/// A dot for each command, and those that waited for the takeover on top: they are few.
fn dots(chart: &mut Chart, page: &Page, shown: &[(&Sample, (f64, f64))]) -> Drawn {
    let (waited, others): (Vec<_>, Vec<_>) = shown
        .iter()
        .partition(|(sample, _)| color_of(page, sample) == FAULT);
    for (dots, radius) in [(others, 2), (waited, 3)] {
        let dot = |(sample, at): &(&Sample, (f64, f64))| {
            Circle::new(*at, radius, color_of(page, sample).filled())
        };
        chart.draw_series(dots.iter().map(dot))?;
    }
    Ok(())
}

fn heading(area: &Area, left: i32, text: &str) -> Drawn {
    write(area, (left, 2), text, 60, bold(18, INK))
}

fn nothing(area: &Area) -> Drawn {
    let (width, height) = area.dim_in_pixel();
    let middle = (width as i32 / 2, height as i32 / 2);
    write(
        area,
        middle,
        "nothing was measured",
        40,
        plain(16, PALE).pos(top(HPos::Center)),
    )
}

fn axes<'a, 'b>(
    area: &'a Area<'b>,
    x: &Axis,
    y: &Axis,
) -> Result<Chart<'a, 'b>, DrawingAreaErrorKind<std::io::Error>> {
    ChartBuilder::on(area)
        .margin_top(30)
        .margin_left(12)
        .margin_right(MARGIN)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(x.clone(), y.clone())
}

/// The lines and numbers of a diagram.
fn mesh(chart: &mut Chart, x_desc: &str, y_desc: &str) -> Drawn {
    chart
        .configure_mesh()
        .bold_line_style(LINE)
        .light_line_style(LINE.mix(0.45))
        .axis_style(PALE)
        .x_desc(x_desc)
        .y_desc(y_desc)
        .axis_desc_style(plain(15, PALE))
        .label_style(plain(15, INK))
        .draw()
}

fn vertical(chart: &mut Chart, x: f64, color: RGBColor) -> Drawn {
    let y = chart.y_range();
    chart.draw_series([PathElement::new([(x, y.start), (x, y.end)], color)])?;
    Ok(())
}

fn band(chart: &mut Chart, from: f64, to: f64, color: RGBAColor) -> Drawn {
    let y = chart.y_range();
    chart.draw_series([Rectangle::new(
        [(from, y.start), (to, y.end)],
        color.filled(),
    )])?;
    Ok(())
}
