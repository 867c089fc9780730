//! The details of a status as they stand in headers and trailers.
//!
//! Whoever made them is not trusted: tonic's own reader and its generated clients panic on details
//! that are no base64.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::noted;

/// Where a status has its details.
pub const DETAILS: &str = "grpc-status-details-bin";
/// With padding or without, as clients take it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The details in headers or trailers, `None` where there are none.
///
/// # Errors
/// When they are no base64.
pub fn read(headers: &HeaderMap) -> Option<Result<Vec<u8>, base64::DecodeError>> {
    headers
        .get(DETAILS)
        .map(|value| BASE64.decode(value.as_bytes()))
}

/// The reason in the details in headers or trailers, where there is one, within the bound of a value
/// in a line.
pub fn reason(headers: &HeaderMap) -> Option<String> {
    reason_in(headers.get(DETAILS)?.as_bytes())
}

/// The same of the details as they stand in their field. Those that are no base64 have none.
pub fn reason_in(details: &[u8]) -> Option<String> {
    let details = BASE64.decode(details).ok()?;
    let status = Status::with_details(Code::Unknown, "", details.into());
    let info = status.get_details_error_info()?;
    noted(&info.reason)
}
