#ifndef SLUICE_API_CHECK_H_
#define SLUICE_API_CHECK_H_
// Status for the caller's mistakes, DCHECK for ours.
#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/api/version.h"

#ifdef NDEBUG
#define SLUICE_DCHECK(cond) ((void)0)
#else
#define SLUICE_DCHECK(cond)                                                         \
  do {                                                                              \
    if (!(cond)) {                                                                  \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #cond); \
      std::abort();                                                                 \
    }                                                                               \
  } while (false)
#endif

#define SLUICE_RETURN_IF_ERROR(expr)                                \
  do {                                                              \
    if (absl::Status sluice_status = (expr); !sluice_status.ok()) { \
      return sluice_status;                                         \
    }                                                               \
  } while (false)

#define SLUICE_CONCAT_INNER(a, b) a##b
#define SLUICE_CONCAT(a, b) SLUICE_CONCAT_INNER(a, b)
#define SLUICE_ASSIGN_OR_RETURN(lhs, expr) \
  SLUICE_ASSIGN_IMPL(SLUICE_CONCAT(sluice_or_, __LINE__), lhs, expr)
#define SLUICE_ASSIGN_IMPL(tmp, lhs, expr)       \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = *std::move(tmp)
#endif  // SLUICE_API_CHECK_H_
