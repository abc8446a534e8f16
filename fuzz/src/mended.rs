//! Objects whose checksums are made to fit, as whoever means harm would: else hardly any change gets past them. The layouts are those of `FORMAT.md`.

use replvfs::format::BLOCK_BYTES;
use replvfs_vfs::types::PageSize;

fn u32_at(object: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(object.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(object: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(object.get(at..at + 8)?.try_into().ok()?)).ok()
}

fn put(object: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(there) = object.get_mut(at..at + bytes.len()) {
        there.copy_from_slice(bytes);
    }
}

fn put_crc(object: &mut [u8], at: usize, of: std::ops::Range<usize>) {
    if let Some(bytes) = object.get(of) {
        let crc = crc32fast::hash(bytes);
        put(object, at, &crc.to_le_bytes());
    }
}

/// A segment or a span.
pub(crate) fn segment(object: &mut [u8]) {
    const HEADER: usize = 116;
    let is_span = object.starts_with(b"replvfsP");
    let (footer_len, magic) = match is_span {
        true => (220, b"replvfsP"),
        false => (200, b"replvfsS"),
    };
    let Some(footer) = object.len().checked_sub(footer_len).filter(|footer| *footer >= HEADER) else {
        return;
    };
    put(object, 0, magic);
    put(object, 8, &1u32.to_le_bytes());
    put(object, object.len() - 8, magic);
    put_crc(object, 112, 0..112);
    object.copy_within(0..112, footer);
    blocks(object, footer);
    let mut tables = vec![(112, 20, 128), (132, 36, 148)];
    if is_span {
        tables.push((180, 40, 196));
    }
    for (at, entry, crc) in tables {
        let (offset, count) = (u64_at(object, footer + at), u64_at(object, footer + at + 8));
        let end = offset
            .zip(count)
            .and_then(|(offset, count)| offset.checked_add(count.checked_mul(entry)?));
        if let Some((offset, end)) = offset.zip(end) {
            put_crc(object, footer + crc, offset..end);
        }
    }
    let (offset, len) = (u64_at(object, footer + 152), u64_at(object, footer + 160));
    if let Some((offset, end)) = offset
        .zip(len)
        .and_then(|(offset, len)| Some((offset, offset.checked_add(len)?)))
    {
        put_crc(object, footer + 176, offset..end);
    }
    let last = footer + footer_len - 20;
    put(object, last, &(object.len() as u64).to_le_bytes());
    put_crc(object, last + 8, footer..last + 8);
}

/// Another content in the only block of a segment.
pub(crate) fn block(object: &[u8], content: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 116;
    let stored = zstd::bulk::compress(content, 1).ok()?;
    let tables = u64_at(object, object.len().checked_sub(200)? + 112)?;
    let mut made = [object.get(..HEADER)?, &stored, object.get(tables..)?].concat();
    let (footer, table) = (made.len() - 200, HEADER + stored.len());
    for at in [112, 132, 152] {
        let offset = u64_at(&made, footer + at)? - tables + table;
        put(&mut made, footer + at, &(offset as u64).to_le_bytes());
    }
    put(&mut made, table + 8, &(stored.len() as u32).to_le_bytes());
    put(&mut made, table + 12, &(content.len() as u32).to_le_bytes());
    segment(&mut made);
    Some(made)
}

/// Of all blocks of an object. Any number of them may share a frame of a few bytes.
const DECODED_BYTES: usize = 8 << 20;

fn blocks(object: &mut [u8], footer: usize) {
    let (Some(table), Some(count)) = (u64_at(object, footer + 112), u64_at(object, footer + 120)) else {
        return;
    };
    let page_size = u32_at(object, 12).and_then(PageSize::new);
    let (Some(page_size), Some(pages)) = (page_size.map(PageSize::as_usize), u64_at(object, footer + 168)) else {
        return;
    };
    let each = BLOCK_BYTES / page_size;
    let mut left = DECODED_BYTES;
    for block in 0..count.min(object.len() / 20) {
        let Some(at) = table.checked_add(20 * block).filter(|at| *at < object.len()) else {
            return;
        };
        let (Some(offset), Some(len)) = (u64_at(object, at), u32_at(object, at + 8)) else {
            return;
        };
        let range = offset.checked_add(len as usize).map(|end| offset..end);
        let stored = range.and_then(|range| object.get(range)).map(<[u8]>::to_vec);
        let (Some(stored), Some(content_len)) = (stored, u32_at(object, at + 12)) else {
            continue;
        };
        let count = pages.saturating_sub(block * each).min(each);
        left = left.saturating_sub(count * page_size);
        if left == 0 {
            return;
        }
        if let Some(pages) = pages_of(&stored, content_len as usize, page_size, count) {
            let crc = crc32fast::hash(&[&pages[..], &stored].concat());
            put(object, at + 16, &crc.to_le_bytes());
        }
    }
}

/// The pages of a block, by a second reading of what `FORMAT.md` says of it.
pub(crate) fn pages_of(stored: &[u8], content_len: usize, page_size: usize, count: usize) -> Option<Vec<u8>> {
    let len = count * page_size;
    if content_len > len {
        return None;
    }
    let content = zstd::bulk::decompress(stored, content_len).ok()?;
    if content.len() != content_len {
        return None;
    }
    if content_len == len {
        return Some(content);
    }
    let control_len = u32_at(&content, 0)? as usize;
    let (mut control, mut literals) = content[4..].split_at_checked(control_len)?;
    let mut pages = Vec::with_capacity(len);
    for page in 0..count {
        let distance = number(&mut control)?;
        if distance == 0 {
            pages.extend_from_slice(literals.split_off(..page_size)?);
            continue;
        }
        let before = page.checked_sub(distance)? * page_size;
        let mut done = 0;
        while done < page_size {
            let (kept, changed) = (number(&mut control)?, number(&mut control)?);
            if kept + changed == 0 || done + kept + changed > page_size {
                return None;
            }
            pages.extend_from_within(before + done..before + done + kept);
            pages.extend_from_slice(literals.split_off(..changed)?);
            done += kept + changed;
        }
    }
    (control.is_empty() && literals.is_empty()).then_some(pages)
}

/// Seven bits a byte, in three bytes at most.
fn number(control: &mut &[u8]) -> Option<usize> {
    let more = control.iter().take(3).position(|byte| *byte < 128)?;
    let digits = control.split_off(..=more)?.iter().rev();
    Some(digits.fold(0, |number, byte| number << 7 | usize::from(byte & 127)))
}

/// The manifest of an image.
pub(crate) fn manifest(object: &mut [u8]) {
    put(object, 0, b"replvfsI");
    put(object, 8, &1u32.to_le_bytes());
    if let Some(end) = object.len().checked_sub(4) {
        put_crc(object, end, 0..end);
    }
}

/// A seal.
pub(crate) fn seal(object: &mut [u8]) {
    put(object, 0, b"replvfsE");
    put(object, 8, &1u32.to_le_bytes());
    put(object, 88, b"replvfsE");
    put_crc(object, 84, 0..84);
}

/// A JSON object with these lines in it.
pub(crate) fn json(members: &str) -> String {
    let text = format!("{{\n{members},\n");
    let crc = crc32fast::hash(text.as_bytes());
    format!("{text}  \"crc32\": \"{crc:08x}\"\n}}\n")
}

/// The members of a JSON object, for [`json`].
pub(crate) fn members(object: &str) -> Option<&str> {
    object
        .strip_prefix("{\n")?
        .rsplit_once(",\n  \"crc32\": \"")
        .map(|(members, _)| members)
}

/// Whatever object it is, by how it begins.
pub(crate) fn any(object: &mut Vec<u8>) {
    match object.get(..8) {
        Some(b"replvfsS" | b"replvfsP") => segment(object),
        Some(b"replvfsI") => manifest(object),
        Some(b"replvfsE") => seal(object),
        _ => {
            let mended = std::str::from_utf8(object).ok().and_then(members).map(json);
            if let Some(mended) = mended {
                *object = mended.into_bytes();
            }
        }
    }
}
