//! `replvfs man`: the manual pages, for who builds a package.

use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::Failure;

/// Writes the manual pages, `replvfs.1` and one for each command, into a folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder, which is made if it is missing.
    folder: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let folder = &arguments.folder;
    let about = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(about)?;
    let mut command = crate::Arguments::command().disable_help_subcommand(true);
    command.build();
    write(&command, folder).map_err(about)?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write(command, folder).map_err(about)?;
    }
    Ok(())
}

/// Without a date: the same program makes the same pages.
fn write(command: &Command, folder: &Path) -> std::io::Result<PathBuf> {
    Man::new(command.clone())
        .source(concat!("replvfs ", env!("CARGO_PKG_VERSION")))
        .manual("replvfs")
        .generate_to(folder)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn each_command_has_a_page_that_renders() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("man1");
        run(&Arguments { folder: folder.clone() }).unwrap();
        let mut found: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                "replvfs-check-config.1",
                "replvfs-completions.1",
                "replvfs-image.1",
                "replvfs-log.1",
                "replvfs-merge.1",
                "replvfs-prune.1",
                "replvfs-restore.1",
                "replvfs-sql.1",
                "replvfs-status.1",
                "replvfs-verify.1",
                "replvfs.1"
            ]
        );
        for name in found {
            let page = std::fs::read_to_string(folder.join(&name)).unwrap();
            let title = name.trim_end_matches(".1");
            assert!(page.contains(&format!(".TH {title} 1")), "{name}: {page}");
            let Ok(groff) = Command::new("groff")
                .args(["-man", "-Tutf8", "-ww"])
                .arg(folder.join(&name))
                .output()
            else {
                eprintln!("groff is not here: {name} is not rendered");
                continue;
            };
            let said = String::from_utf8_lossy(&groff.stderr);
            assert!(groff.status.success() && said.is_empty(), "{name}: {said}");
            let text = String::from_utf8_lossy(&groff.stdout);
            assert!(text.contains("SYNOPSIS") || text.contains("S\u{8}SY"), "{name}: {text}");
        }
    }
}
