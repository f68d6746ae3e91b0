#ifndef SLUICE_RUNTIME_SERVICE_ALLOW_LIST_H_
#define SLUICE_RUNTIME_SERVICE_ALLOW_LIST_H_
// CURVE keys and who may connect. Keys are Z85 text, 40 characters; files hold one a line, # begins
// a comment.
#include <cstdint>
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

// Answers ZeroMQ's authentication requests (ZAP, RFC 27). That there is somebody who answers makes
// ZeroMQ refuse peers of ZMTP 1 and 2, which greet with nothing of their own: to those, the bytes
// of any other protocol, a web page's POST for one, are messages.
class AllowList {
 public:
  // `path`: the public keys that may connect; the file is read again when
  // somebody connects and at Refresh. A client's key becomes its User-Id. Empty: whoever asks for
  // no encryption.
  static absl::StatusOr<std::unique_ptr<AllowList>> Start(zmq::context_t&, const std::string& path);
  virtual ~AllowList() = default;
  // Whether a key may still speak: connections outlive the line that let them in.
  virtual bool Holds(const std::string& key) = 0;
  // Reads the file again where it changed.
  virtual void Refresh() = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_ALLOW_LIST_H_
