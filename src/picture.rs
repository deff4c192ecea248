//! One page that shows what a takeover did to the clients: an SVG that any browser opens.
//!
//! From top to bottom: what was run; the latency of every command over time; the takeover by itself with its phases
//! shaded, beside the distribution of latencies; percentiles beside the events; and the sentence that was checked.
//! Latencies are on logarithmic axes, since a takeover is a thousand commands long.
//!
//! - `scale`: which numbers an axis shows, and how times are written.
//! - `panels`: the three diagrams.

mod panels;
mod scale;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use scale::duration;

/// What the page says.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// One line.
    pub title: String,
    /// What was run, and where. Two lines fit.
    pub subtitle: Vec<String>,
    /// Latencies before the takeover, after it, and what else is to be told apart. Three fit.
    pub phases: Vec<Phase>,
    /// Commands as the clients saw them, in any order.
    pub series: Vec<Sample>,
    /// The takeover, if there was one.
    pub takeover: Option<Takeover>,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// What was checked, in one sentence. Two lines fit, about 230 characters.
    pub closing: String,
    /// Does it hold?
    pub holds: bool,
}

/// Latencies of one phase of the run.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Its figures.
    pub percentiles: Percentiles,
    /// How its latencies are distributed. Empty ranges can be left out.
    pub histogram: Vec<Bucket>,
}

/// Percentiles of latencies, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Percentiles {
    /// Half are no longer.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The longest.
    pub max: u64,
    /// How many there are.
    pub count: u64,
}

/// Latencies within a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The shortest.
    pub from_ns: u64,
    /// The longest.
    pub to_ns: u64,
    /// How many.
    pub count: u64,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When its client was answered. All times of a page count from the same instant.
    pub at_ns: u64,
    /// How long the client had waited.
    pub latency_ns: u64,
}

/// The instants of a takeover, each no earlier than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The leader is killed.
    pub killed_ns: u64,
    /// A follower holds it for dead.
    pub detected_ns: u64,
    /// The new leader has the permission of a majority.
    pub switched_ns: u64,
    /// It has decided its first command.
    pub decided_ns: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at_ns: u64,
    /// What.
    pub text: String,
}

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(crate) type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

const SIZE: (u32, u32) = (1280, 1000);
const MARGIN: i32 = 32;
/// Where the right column begins.
const RIGHT: i32 = 800;
const INK: RGBColor = RGBColor(0x1f, 0x29, 0x33);
const PALE: RGBColor = RGBColor(0x61, 0x6e, 0x7c);
const LINE: RGBColor = RGBColor(0xd5, 0xda, 0xe1);
/// Blue, orange and violet, told apart by people who see no red or green as well.
const PHASES: [RGBColor; 3] = [
    RGBColor(0x1f, 0x6f, 0xb4),
    RGBColor(0xd9, 0x72, 0x0c),
    RGBColor(0x7b, 0x4f, 0xa3),
];
const FAULT: RGBColor = RGBColor(0xb4, 0x23, 0x18);
const HOLDS: RGBColor = RGBColor(0x1b, 0x7f, 0x4b);

/// How many characters of the closing sentence fit on a line.
const CLOSING: usize = 118;

/// How many events the page has room for.
const EVENTS: usize = 8;

/// Draws the page.
///
/// # Panics
/// Never for what the page says. Writing into memory does not fail.
pub fn render(page: &Page) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(&area, page).expect("writing into memory does not fail");
    }
    svg
}

fn draw(area: &Area, page: &Page) -> Drawn {
    area.fill(&WHITE)?;
    write(area, (MARGIN, 24), &page.title, 75, bold(28, INK))?;
    for (line, y) in page.subtitle.iter().take(2).zip([64, 84]) {
        write(area, (MARGIN, y), line, 170, plain(16, PALE))?;
    }
    let panel = |(x, y), size| area.clone().shrink((x, y), size);
    panels::over_time(&panel((0, 112), (1280, 290)), page)?;
    panels::takeover(&panel((0, 410), (RIGHT as u32, 310)), page)?;
    panels::distribution(&panel((RIGHT, 410), (480, 310)), page)?;
    percentiles(&panel((0, 734), (RIGHT as u32, 170)), page)?;
    events(&panel((RIGHT, 734), (480, 210)), page)?;
    closing(&panel((MARGIN, 946), (1216, 40)), page)?;
    area.present()
}

fn percentiles(area: &Area, page: &Page) -> Drawn {
    write(area, (MARGIN, 0), "Latency in figures", 40, bold(18, INK))?;
    let columns = ["commands", "p50", "p90", "p99", "p99.9", "max"];
    let right = |at: usize| 300 + 92 * at as i32;
    for (at, name) in columns.iter().enumerate() {
        write(
            area,
            (right(at), 30),
            name,
            12,
            plain(15, PALE).pos(top(HPos::Right)),
        )?;
    }
    for (row, (phase, color)) in page.phases.iter().zip(PHASES).enumerate() {
        let y = 56 + 28 * row as i32;
        rule(area, (MARGIN, 772), y - 7)?;
        area.draw(&Circle::new((MARGIN + 6, y + 6), 5, color.filled()))?;
        write(area, (MARGIN + 20, y), &phase.name, 20, plain(16, INK))?;
        let p = phase.percentiles;
        let mut figures = vec![grouped(p.count)];
        figures.extend([p.p50, p.p90, p.p99, p.p999, p.max].map(duration));
        for (at, figure) in figures.iter().enumerate() {
            write(
                area,
                (right(at), y),
                figure,
                20,
                plain(16, INK).pos(top(HPos::Right)),
            )?;
        }
    }
    Ok(())
}

fn events(area: &Area, page: &Page) -> Drawn {
    write(area, (16, 0), "What happened", 40, bold(18, INK))?;
    let zero_ns = page.takeover.map(|takeover| takeover.killed_ns);
    let shown = match page.events.len() {
        all if all <= EVENTS => all,
        _ => EVENTS - 1,
    };
    for (row, event) in page.events.iter().take(shown).enumerate() {
        let y = 30 + 22 * row as i32;
        let at = match zero_ns {
            Some(zero_ns) if event.at_ns == zero_ns => "0".into(),
            Some(zero_ns) if event.at_ns > zero_ns => {
                format!("+{}", duration(event.at_ns - zero_ns))
            }
            Some(zero_ns) => format!("\u{2212}{}", duration(zero_ns - event.at_ns)),
            None => duration(event.at_ns),
        };
        write(
            area,
            (96, y),
            &at,
            12,
            plain(15, PALE).pos(top(HPos::Right)),
        )?;
        write(area, (110, y), &event.text, 48, plain(15, INK))?;
    }
    if shown < page.events.len() {
        let more = format!("and {} more", page.events.len() - shown);
        write(
            area,
            (110, 30 + 22 * shown as i32),
            &more,
            48,
            plain(15, PALE),
        )?;
    }
    Ok(())
}

fn closing(area: &Area, page: &Page) -> Drawn {
    let (mark, color) = if page.holds {
        ("\u{2713}", HOLDS)
    } else {
        ("\u{2717}", FAULT)
    };
    let (width, height) = area.dim_in_pixel();
    let corners = [(0, 0), (width as i32, height as i32)];
    area.draw(&Rectangle::new(corners, color.mix(0.10).filled()))?;
    area.draw(&Rectangle::new(
        [(0, 0), (5, height as i32)],
        color.filled(),
    ))?;
    write(area, (22, 10), mark, 1, bold(20, color))?;
    if page.closing.chars().count() <= CLOSING {
        return write(area, (48, 10), &page.closing, CLOSING, bold(18, color));
    }
    let (first, second) = in_two(&page.closing, CLOSING);
    write(area, (48, 3), first, CLOSING, bold(16, color))?;
    write(area, (48, 21), second, CLOSING, bold(16, color))
}

/// Cut at the last blank that leaves at most so many characters before it, or after so many.
fn in_two(text: &str, limit: usize) -> (&str, &str) {
    let end = text
        .char_indices()
        .nth(limit)
        .map_or(text.len(), |(at, _)| at);
    let at = text[..end].rfind(' ').unwrap_or(end);
    (&text[..at], text[at..].trim_start())
}

/// Writes one line, cut to so many characters: nobody can tell here how wide the letters of a page's reader are.
fn write(area: &Area, at: (i32, i32), text: &str, limit: usize, style: TextStyle) -> Drawn {
    let mut line: String = text.chars().take(limit).map(printable).collect();
    if text.chars().count() > limit {
        line.pop();
        line.push('\u{2026}');
    }
    area.draw_text(&line, &style, at)
}

/// XML has no way to say most control characters.
fn printable(c: char) -> char {
    match c {
        '\u{fffe}' | '\u{ffff}' => ' ',
        c if c.is_control() => ' ',
        c => c,
    }
}

fn rule(area: &Area, (from, to): (i32, i32), y: i32) -> Drawn {
    area.draw(&PathElement::new([(from, y), (to, y)], LINE))
}

fn plain(size: i32, color: RGBColor) -> TextStyle<'static> {
    let style = FontDesc::new(FontFamily::SansSerif, f64::from(size), FontStyle::Normal);
    style.color(&color).pos(top(HPos::Left))
}

fn bold(size: i32, color: RGBColor) -> TextStyle<'static> {
    let style = FontDesc::new(FontFamily::SansSerif, f64::from(size), FontStyle::Bold);
    style.color(&color).pos(top(HPos::Left))
}

fn top(h_pos: HPos) -> Pos {
    Pos::new(h_pos, VPos::Top)
}

/// A count with its thousands apart.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{2009}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
