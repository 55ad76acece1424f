//! The sample web application of the notes, as a WAR.

use std::io::{Cursor, Write};

use anyhow::Result;
use zip::write::SimpleFileOptions;

const INDEX: &str = "<!DOCTYPE html>\n<html><head><title>Sample</title></head>\n<body><h1>Sample \"Hello, World\" Application</h1>\n<p>This page came out of the WAR that the init container brought.</p></body></html>\n";
const WEB_XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<web-app xmlns=\"https://jakarta.ee/xml/ns/jakartaee\" version=\"5.0\"><display-name>sample</display-name></web-app>\n";

/// The bytes of `sample.war`.
pub(crate) fn sample() -> Result<Vec<u8>> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, text) in [("index.html", INDEX), ("WEB-INF/web.xml", WEB_XML)] {
        archive.start_file(name, options)?;
        archive.write_all(text.as_bytes())?;
    }
    Ok(archive.finish()?.into_inner())
}
