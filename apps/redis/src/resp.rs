//! The little of Redis's protocol that a node reads: commands as arrays of bulk strings.

/// What [`next`] found at the front of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// A whole command and the bytes that it takes.
    Command(Vec<&'a [u8]>, usize),
    /// The beginning of one.
    Part,
    /// Something else.
    Bad,
}

/// Most arguments of a command that is taken from a peer.
const ARGUMENTS_MAX: usize = 1 << 20;

/// The number between `at` and the next line end, which are digits only, and the place behind the line end.
fn number(bytes: &[u8], at: usize) -> Result<(usize, usize), bool> {
    let mut value = 0_usize;
    for (n, byte) in bytes[at..].iter().enumerate() {
        match byte {
            b'0'..=b'9' if n < 12 => value = value * 10 + usize::from(byte - b'0'),
            b'\r' if n > 0 => {
                return match bytes.get(at + n + 1) {
                    Some(b'\n') => Ok((value, at + n + 2)),
                    Some(_) => Err(false),
                    None => Err(true),
                };
            }
            _ => return Err(false),
        }
    }
    Err(true)
}

/// Walks over one command of at most `most` arguments. `each` gets every argument. Gives the place behind it; an error
/// is `true` where bytes are missing, and `false` where they are wrong.
fn walk<'a>(
    bytes: &'a [u8],
    most: usize,
    mut each: impl FnMut(usize, &'a [u8]),
) -> Result<usize, bool> {
    match bytes.first() {
        Some(b'*') => {}
        Some(_) => return Err(false),
        None => return Err(true),
    }
    let (count, mut at) = number(bytes, 1)?;
    if count > most {
        return Err(false);
    }
    for n in 0..count {
        match bytes.get(at) {
            Some(b'$') => {}
            Some(_) => return Err(false),
            None => return Err(true),
        }
        let (len, start) = number(bytes, at + 1)?;
        let end = start + len;
        let Some(tail) = bytes.get(end..end + 2) else {
            return Err(true);
        };
        if tail != b"\r\n" {
            return Err(false);
        }
        each(n, &bytes[start..end]);
        at = end + 2;
    }
    Ok(at)
}

/// The command at the front of `bytes`.
pub(crate) fn next(bytes: &[u8]) -> Next<'_> {
    let mut arguments = Vec::new();
    match walk(bytes, ARGUMENTS_MAX, |_, argument| arguments.push(argument)) {
        Ok(end) => Next::Command(arguments, end),
        Err(true) => Next::Part,
        Err(false) => Next::Bad,
    }
}

/// The database that is selected after these whole commands; `before` if none of them selects one. `None` if they are
/// no commands. They are the own server's, which takes commands of as many arguments as it likes.
pub(crate) fn selected(bytes: &[u8], before: Option<u32>) -> Option<Option<u32>> {
    let mut selected = before;
    let mut at = 0;
    while at < bytes.len() {
        let mut is_select = false;
        let walked = walk(&bytes[at..], usize::MAX, |n, argument| match n {
            0 => is_select = argument.eq_ignore_ascii_case(b"select"),
            1 if is_select => {
                let text = str::from_utf8(argument).ok();
                selected = text.and_then(|text| text.parse().ok()).or(selected);
            }
            _ => {}
        });
        at += walked.ok()?;
    }
    Some(selected)
}

/// A command as it is sent.
pub(crate) fn command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_whole_and_in_every_part() {
        let bytes = command(&[b"SET", b"k", b"a\r\nb"]);
        assert_eq!(
            next(&bytes),
            Next::Command(vec![b"SET", b"k", b"a\r\nb"], bytes.len())
        );
        for len in 0..bytes.len() {
            assert_eq!(next(&bytes[..len]), Next::Part, "{len}");
        }
        for bad in [
            &b"PING\r\n"[..],
            b"*1\r\n+x\r\n",
            b"*1\r\n$1\r\nxyz",
            b"*-1\r\n",
            b"*9999999999999\r\n",
            b"*x\r\n",
        ] {
            assert_eq!(next(bad), Next::Bad, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn the_last_select_counts_and_values_do_not() {
        let set = command(&[b"SET", b"SELECT", b"7"]);
        let select = |db: &[u8]| command(&[b"select", db]);
        assert_eq!(selected(&set, Some(3)), Some(Some(3)));
        let bytes = [select(b"1"), set.clone(), select(b"12"), set].concat();
        assert_eq!(selected(&bytes, None), Some(Some(12)));
        assert_eq!(selected(&bytes[..bytes.len() - 1], None), None, "not whole");
        assert_eq!(selected(b"", None), Some(None));
    }

    #[test]
    fn a_peer_is_bounded_in_its_arguments_and_the_own_server_is_not() {
        let mut arguments = vec![&b"SADD"[..], b"k"];
        arguments.resize(1_100_000, b"x");
        let bytes = [command(&[b"SELECT", b"5"]), command(&arguments)].concat();
        assert_eq!(selected(&bytes, None), Some(Some(5)));
        assert_eq!(next(&command(&arguments)), Next::Bad);
        let most = command(&arguments[..ARGUMENTS_MAX]);
        assert!(matches!(next(&most), Next::Command(found, _) if found.len() == ARGUMENTS_MAX));
    }
}
