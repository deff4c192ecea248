//! A moment as FIX spells it: `YYYYMMDD-HH:MM:SS.mmm`, UTC.

const NS_PER_MS: u64 = 1_000_000;
const MS_PER_DAY: u64 = 86_400_000;
/// From the first of March of the year 0 to the Unix epoch.
const DAYS_BEFORE: u64 = 719_468;
/// Days of 400 years.
const ERA_DAYS: u64 = 146_097;

/// Nanoseconds since the Unix epoch as text.
#[must_use]
pub fn text(time_ns: u64) -> String {
    let ms = time_ns / NS_PER_MS;
    let (days, ms) = (ms / MS_PER_DAY, ms % MS_PER_DAY);
    let (year, month, day) = date(days);
    format!(
        "{year:04}{month:02}{day:02}-{:02}:{:02}:{:02}.{:03}",
        ms / 3_600_000,
        ms / 60_000 % 60,
        ms / 1000 % 60,
        ms % 1000
    )
}

/// The Gregorian date of a day since the epoch. Years are counted from March, so that a leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_BEFORE;
    let (era, day) = (days / ERA_DAYS, days % ERA_DAYS);
    // Days that the leap days before took are given back.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March have 31, 30, 31, 30, 31 days, and again.
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (400 * era + year + later, month, date)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendars() {
        const DAY_NS: u64 = MS_PER_DAY * NS_PER_MS;
        assert_eq!(text(0), "19700101-00:00:00.000");
        assert_eq!(text(11_016 * DAY_NS), "20000229-00:00:00.000");
        assert_eq!(text(11_017 * DAY_NS - 1), "20000229-23:59:59.999");
        assert_eq!(text(1_795_716_000_123 * NS_PER_MS), "20261126-18:00:00.123");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = date(0);
        for days in 1..200_000 {
            let (year, month, day) = date(days);
            let next_day = (before.0, before.1, before.2 + 1) == (year, month, day);
            let next_month = day == 1 && (before.0, before.1 + 1) == (year, month);
            let next_year = (month, day) == (1, 1) && before.0 + 1 == year && before.1 == 12;
            assert!(
                next_day || next_month || next_year,
                "{before:?} to {year} {month} {day}"
            );
            before = (year, month, day);
        }
    }
}
