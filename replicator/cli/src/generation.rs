//! Generations on the command line: as `replvfs log` shows them, with or without their leading zeros.

use std::str::FromStr;

use replvfs::format::Generation;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GenerationArgument(pub(crate) Generation);

impl FromStr for GenerationArgument {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("a generation is a hexadecimal number, as `replvfs log` shows it");
        }
        u64::from_str_radix(text, 16)
            .map(|number| GenerationArgument(Generation(number)))
            .map_err(|_| "a generation is a hexadecimal number of at most 16 digits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_read_as_they_are_shown() {
        let shown = Generation(0x1f).to_string();
        assert_eq!(shown.parse(), Ok(GenerationArgument(Generation(0x1f))));
        assert_eq!("1F".parse(), Ok(GenerationArgument(Generation(0x1f))));
        for wrong in ["", "+1", "0x1", "11112222333344445", "newest"] {
            assert!(wrong.parse::<GenerationArgument>().is_err(), "{wrong}");
        }
    }
}
