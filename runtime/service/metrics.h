#ifndef SLUICE_RUNTIME_SERVICE_METRICS_H_
#define SLUICE_RUNTIME_SERVICE_METRICS_H_
// What /metrics answers: the server's statistics in the text format of Prometheus.
#include <string>

#include "sluice/api/version.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
// Two series never have the same labels, whatever bytes an agent's name has.
std::string PrometheusText(const v1::StatsResponse& stats);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_METRICS_H_
