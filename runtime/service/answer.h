#ifndef SLUICE_RUNTIME_SERVICE_ANSWER_H_
#define SLUICE_RUNTIME_SERVICE_ANSWER_H_
// How a request is refused: codes of the wire for those of absl.
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "sluice/api/version.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
inline v1::Code CodeOf(absl::StatusCode c) {
  switch (c) {
    case absl::StatusCode::kOk:
      return v1::OK;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return v1::INVALID_ARGUMENT;
    case absl::StatusCode::kNotFound:
      return v1::NOT_FOUND;
    case absl::StatusCode::kUnavailable:
      return v1::UNAVAILABLE;
    case absl::StatusCode::kUnimplemented:
      return v1::UNIMPLEMENTED;
    case absl::StatusCode::kFailedPrecondition:
      return v1::FAILED_PRECONDITION;
    default:
      return v1::INTERNAL;
  }
}
inline void SetError(v1::Error* e, v1::Code code, absl::string_view text) {
  e->set_code(code);
  e->set_text(std::string(text));
}
inline void SetError(v1::Error* e, const absl::Status& status) {
  SetError(e, CodeOf(status.code()), status.message());
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_ANSWER_H_
