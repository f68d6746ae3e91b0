#include <stdlib.h>
#include <string.h>
#include "sluice/api/abi/sluice_abi.h"
#define MANIFEST(text) \
  __attribute__((section(SLUICE_MANIFEST_SECTION), used)) const char manifest[] = text;
/* Plug-ins that must be refused, one a BAD number. */
#if BAD == 0 /* no_manifest */
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#elif BAD == 1  /* future_major */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  abort();
}
#elif BAD == 2  /* future_minor */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.9\nmin_host_minor=9\n")
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  abort();
}
#elif BAD == 3  /* odd_manifest */
MANIFEST("sluice-plugin 7\n")
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  abort();
}
#elif BAD == 4  /* no_entry */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.0\nmin_host_minor=0\n")
int other(void) { return 1; }
#elif BAD == 5  /* null_entry */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.0\nmin_host_minor=0\n")
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#elif BAD == 6  /* short_record */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.0\nmin_host_minor=0\n")
static const size_t record = 16;
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return (const sluice_plugin_v1*)&record;
}
#elif BAD == 7  /* wrong_magic */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.0\nmin_host_minor=0\n")
static const sluice_plugin_v1 p = {
    sizeof(sluice_plugin_v1), 7, 1, 0, 0, "x", "1", 0, NULL, 0, NULL, 0, NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 8  /* null_table */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.0\nmin_host_minor=0\n")
static const sluice_plugin_v1 p = {
    sizeof(sluice_plugin_v1), SLUICE_PLUGIN_MAGIC, 1, 0, 0, "x", "1", 1, NULL, 0, NULL, 0, NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 9  /* null_function */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.0\nmin_host_minor=0\n")
static const sluice_attention_router_v1 r = {sizeof r, "hole", 0,    "",   "",
                                             NULL,     NULL,   NULL, NULL, NULL};
static const sluice_attention_router_v1* const t[] = {&r};
static const sluice_plugin_v1 p = {
    sizeof(sluice_plugin_v1), SLUICE_PLUGIN_MAGIC, 1, 0, 0, "x", "1", 0, NULL, 1, t, 0, NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 10 /* short_table */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.0\nmin_host_minor=0\n")
static const sluice_attention_router_v1 r = {24, "short", 0, "", "", NULL, NULL, NULL, NULL, NULL};
static const sluice_attention_router_v1* const t[] = {&r};
static const sluice_plugin_v1 p = {
    sizeof(sluice_plugin_v1), SLUICE_PLUGIN_MAGIC, 1, 0, 0, "x", "1", 0, NULL, 1, t, 0, NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 11 /* null_agents */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.1\nmin_host_minor=0\n")
static const sluice_plugin_v1 p = {
    sizeof(sluice_plugin_v1), SLUICE_PLUGIN_MAGIC, 1, 1, 0, "x", "1", 0, NULL, 0, NULL, 2, NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 12 /* crashes */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.0\nmin_host_minor=0\n")
__attribute__((constructor)) static void crash(void) { abort(); }
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#elif BAD == 13 /* exits */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=1.0\nmin_host_minor=0\n")
__attribute__((constructor)) static void leave(void) { _Exit(3); }
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#endif
