//! Reading TOML files so that a mistake is named by file, line, path and nearest known key.
//!
//! Owns the way from text to a typed value; what the keys are belongs to whoever reads them.

mod size;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

pub use size::Size;

/// Largest configuration file, in bytes: far above any real one, far below what hurts.
pub const CONFIG_MAX: u64 = 4 << 20;

/// Why a configuration cannot be used. Its text names the place and the way out.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such file where one is looked for.
    #[error("there is no {}: name the directory that has one", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A key is unknown, missing or of the wrong kind.
    #[error("{0}")]
    Key(Mistake),
    /// A value is well formed and cannot be right.
    #[error("{}: {key}: {text}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Path of the key, as in `agents[0].name`.
        key: String,
        /// What is wrong and what would be right.
        text: String,
    },
}

/// A key that is wrong, and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake {
    file: PathBuf,
    line: usize,
    key: String,
    text: String,
    nearest: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)?;
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
            None => Ok(()),
        }
    }
}

/// Reads a TOML file.
///
/// # Errors
/// When it cannot be read, is no TOML, or has a key that `T` does not know.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let unreadable = |source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    };
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > CONFIG_MAX {
        return Err(unreadable(io::Error::other(
            "larger than 4 MiB: not a configuration",
        )));
    }
    parse(path, &fs::read_to_string(path).map_err(unreadable)?)
}

/// Reads TOML text; `path` is only named in errors.
///
/// # Errors
/// As [`load`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Key(explain(path, text, &error)))
}

fn explain(path: &Path, text: &str, error: &toml::de::Error) -> Mistake {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text[..text.floor_char_boundary(at)];
    let line = before.matches('\n').count() + 1;
    let message = error.message().trim();
    let unknown = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split_once('`'));
    let (text_of_it, nearest) = match unknown {
        Some((key, rest)) => {
            let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
            (
                format!("unknown key `{key}`; known: {}", known.join(", ")),
                nearest(key, &known),
            )
        }
        None => (message.replace('\n', " "), None),
    };
    let current = text.lines().nth(line - 1).unwrap_or_default();
    Mistake {
        file: path.to_path_buf(),
        line,
        key: key_path(before, current),
        text: text_of_it,
        nearest,
    }
}

/// The table that the text before the mistake ends in, and the key of the line itself.
fn key_path(before: &str, current: &str) -> String {
    let header = |line: &str| {
        let line = line.trim();
        let inner = line.strip_prefix('[')?.trim_start_matches('[');
        Some(inner.split(']').next()?.trim().to_owned())
    };
    let table = header(current).or_else(|| before.lines().rev().find_map(header));
    let key = current
        .split('=')
        .next()
        .map(str::trim)
        .filter(|_| current.contains('='));
    let counted = table.map(|table| {
        let rows = before.lines().chain([current]);
        let array = format!("[[{table}]]");
        match rows.filter(|line| line.trim() == array).count() {
            0 => table,
            count => format!("{table}[{}]", count - 1),
        }
    });
    [counted.as_deref(), key]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(".")
}

fn nearest(key: &str, known: &[&str]) -> Option<String> {
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(key, known), *known))
        .min()
        .filter(|(distance, known)| *distance <= 2.max(known.len() / 3))
        .map(|(_, known)| known.to_owned())
}

/// A length of time as people write it: `250ms`, `30s`, `5m`, `1h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration: write 250ms, 30s, 5m, 1h or 7d");
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit = match &text[digits..] {
            "ms" => return Ok(Self(Duration::from_millis(count))),
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        count
            .checked_mul(unit)
            .map(|all| Self(Duration::from_secs(all)))
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        for (unit, size) in [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1000),
        ] {
            if millis > 0 && millis.is_multiple_of(size) {
                return write!(f, "{}{unit}", millis / size);
            }
        }
        write!(f, "{millis}ms")
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only the shape matters")]
    struct Mesh {
        trust_domain: Option<String>,
        #[serde(default)]
        agents: Vec<Agent>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only the shape matters")]
    struct Agent {
        name: String,
        #[serde(default)]
        instances: u32,
    }

    fn mistake(text: &str) -> String {
        parse::<Mesh>(Path::new("mesh.toml"), text)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_place_and_nearest() {
        let text =
            "trust_domain = 'a'\n[[agents]]\nname = 'x'\n[[agents]]\nname = 'y'\ninstance = 2\n";
        assert_eq!(
            mistake(text),
            "mesh.toml:6: agents[1].instance: unknown key `instance`; known: name, instances; did you mean `instances`?"
        );
        assert!(mistake("zzzzzzzzzz = 1").ends_with("known: trust_domain, agents"));
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let text = mistake("[[agents]]\nname = 'x'\ninstances = 'two'\n");
        assert!(
            text.starts_with("mesh.toml:3: agents[0].instances: invalid type"),
            "{text}"
        );
        let text = mistake("[[agents]]\nname = \n");
        assert!(text.starts_with("mesh.toml:2: agents[0].name: "), "{text}");
    }

    #[test]
    fn spans_read_and_print() {
        for text in ["250ms", "30s", "5m", "1h", "7d", "90s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for bad in ["", "5", "s", "1w", "-1s", "1.5h", "99999999999999999999s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
