/* What the frozen plug-ins of ABI 2.0 share. They and the header beside them stay as they are:
 *   cc -std=c11 -O2 -shared -fPIC -fvisibility=hidden -s attention.c -o attention.so -lm
 *   cc -std=c11 -O2 -shared -fPIC -fvisibility=hidden -s methods.c -o methods.so -lm */
#ifndef SLUICE_FROZEN_2_0_COMMON_H_
#define SLUICE_FROZEN_2_0_COMMON_H_
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sluice_abi.h"

#define EXPORTED __attribute__((visibility("default")))
enum { kInvalid = 3, kNoMemory = 8, kPrecondition = 9 };

static sluice_code fail(sluice_error* e, sluice_code code, const char* text) {
  if (e != NULL && e->text != NULL && e->capacity > 0) {
    strncpy(e->text, text, e->capacity - 1);
    e->text[e->capacity - 1] = 0;
  }
  return code;
}

/* The one key that a method knows, as a number; other keys are errors. */
static sluice_code read_option(const sluice_kv* kv, size_t n, const char* key, double* value,
                               sluice_error* e) {
  for (size_t i = 0; i < n; ++i) {
    char text[32] = {0};
    if (kv[i].key_len != strlen(key) || memcmp(kv[i].key, key, kv[i].key_len) != 0)
      return fail(e, kInvalid, "unknown key");
    if (kv[i].value_len >= sizeof text) return fail(e, kInvalid, "a value that is too long");
    memcpy(text, kv[i].value, kv[i].value_len);
    *value = strtod(text, NULL);
  }
  return 0;
}
static int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
#endif
