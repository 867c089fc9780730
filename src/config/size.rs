//! A number of bytes as people write it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes as people write it: `0`, `512KiB`, `16MiB`, `2GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Largest first, so that a number is printed in the largest unit that it is a multiple of.
const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("", 1),
];

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size: write 0, 512KiB, 16MiB or 2GiB");
        let end = text.find(|c: char| !c.is_ascii_digit());
        let (count, unit) = text.split_at(end.unwrap_or(text.len()));
        let count: u64 = count.parse().map_err(|_| wrong())?;
        let unit = UNITS.iter().find(|(name, _)| *name == unit);
        let (_, unit) = unit.ok_or_else(wrong)?;
        count.checked_mul(*unit).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, size): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*size);
        match UNITS.iter().find(fits) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => f.write_str("0"),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for text in ["0", "1", "1000", "512KiB", "16MiB", "3GiB", "1025KiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("1024".parse::<Size>().unwrap().to_string(), "1KiB");
        for bad in [
            "",
            "MiB",
            "1MB",
            "-1",
            "1.5GiB",
            "99999999999999GiB",
            "1 MiB",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
