#ifndef SLUICE_RUNTIME_SERVICE_ALLOW_LIST_H_
#define SLUICE_RUNTIME_SERVICE_ALLOW_LIST_H_
// CURVE keys and who may connect. Keys are Z85 text, 40 characters; files hold one a line, # begins
// a comment.
#include <memory>
#include <string>
#include <zmq.hpp>

#include "absl/status/statusor.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
struct CurveKeys {
  std::string public_key, secret;
};
absl::StatusOr<CurveKeys> NewCurveKeys();
// The first key of the file; its public half is derived.
absl::StatusOr<CurveKeys> ReadSecretKey(const std::string& path);

// Answers ZeroMQ's authentication requests (ZAP, RFC 27) from a file that is read again whenever it
// changes. The client's public key becomes its User-Id.
class AllowList {
 public:
  static absl::StatusOr<std::unique_ptr<AllowList>> Start(zmq::context_t&, const std::string& path);
  virtual ~AllowList() = default;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_ALLOW_LIST_H_
