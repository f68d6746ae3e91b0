#ifndef SLUICE_API_VERSION_H_
#define SLUICE_API_VERSION_H_
// Everything public lives in one inline namespace, so that two versions can be linked into one
// process.
#define SLUICE_VERSION "0.1.0"
#define SLUICE_BEGIN_NAMESPACE \
  namespace sluice {           \
  inline namespace v0 {
#define SLUICE_END_NAMESPACE \
  }                          \
  }
#endif  // SLUICE_API_VERSION_H_
