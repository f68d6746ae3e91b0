#ifndef SLUICE_RUNTIME_SERVICE_HTTP_H_
#define SLUICE_RUNTIME_SERVICE_HTTP_H_
// Operability over HTTP: /metrics (Prometheus text), /healthz, /readyz, a page, and the JSON that
// the page reads. Read-only; every answer comes from the server through a client of its own, so
// nothing is shared with the serving thread.
#include <memory>
#include <string>
#include <zmq.hpp>

#include "absl/status/statusor.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class HttpServer {
 public:
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& host, int port,
                                                           zmq::context_t& context,
                                                           const std::string& endpoint);
  virtual ~HttpServer() = default;
  virtual int port() const = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_HTTP_H_
