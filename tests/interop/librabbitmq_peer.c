/*
 * The other end of tests/live/interop.rs: librabbitmq.
 *
 * publish URL QUEUE   publishes a message with every property and every kind of
 *                     header value that librabbitmq knows
 * get URL QUEUE       takes a message and prints all of it, one value a line
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_tcp_socket.h>
#endif

#define COUNT(array) ((int)(sizeof(array) / sizeof(*(array))))

static void check(int fine, const char *what) {
  if (!fine) {
    fprintf(stderr, "%s failed\n", what);
    exit(1);
  }
}

static void check_reply(amqp_rpc_reply_t reply, const char *what) {
  check(reply.reply_type == AMQP_RESPONSE_NORMAL, what);
}

/* ------------------------------------------------------------ publishing -- */

static amqp_bytes_t text(const char *string) {
  return amqp_cstring_bytes(string);
}

static amqp_table_entry_t entry(const char *name, uint8_t kind) {
  amqp_table_entry_t made;
  memset(&made, 0, sizeof(made));
  made.key = text(name);
  made.value.kind = kind;
  return made;
}

static void publish(amqp_connection_state_t connection, const char *queue) {
  amqp_table_entry_t inner = entry("inner", AMQP_FIELD_KIND_I32);
  inner.value.value.i32 = 1;

  amqp_field_value_t items[3];
  memset(items, 0, sizeof(items));
  items[0].kind = AMQP_FIELD_KIND_I32;
  items[0].value.i32 = 1;
  items[1].kind = AMQP_FIELD_KIND_UTF8;
  items[1].value.bytes = text("two");
  items[2].kind = AMQP_FIELD_KIND_VOID;

  amqp_table_entry_t headers[] = {
      entry("boolean", AMQP_FIELD_KIND_BOOLEAN),
      entry("i8", AMQP_FIELD_KIND_I8),
      entry("u8", AMQP_FIELD_KIND_U8),
      entry("i16", AMQP_FIELD_KIND_I16),
      entry("u16", AMQP_FIELD_KIND_U16),
      entry("i32", AMQP_FIELD_KIND_I32),
      entry("u32", AMQP_FIELD_KIND_U32),
      entry("i64", AMQP_FIELD_KIND_I64),
      entry("u64", AMQP_FIELD_KIND_U64),
      entry("f32", AMQP_FIELD_KIND_F32),
      entry("f64", AMQP_FIELD_KIND_F64),
      entry("decimal", AMQP_FIELD_KIND_DECIMAL),
      entry("utf8", AMQP_FIELD_KIND_UTF8),
      entry("array", AMQP_FIELD_KIND_ARRAY),
      entry("timestamp", AMQP_FIELD_KIND_TIMESTAMP),
      entry("table", AMQP_FIELD_KIND_TABLE),
      entry("void", AMQP_FIELD_KIND_VOID),
      entry("bytes", AMQP_FIELD_KIND_BYTES),
  };
  amqp_table_entry_t *next = headers;
  (next++)->value.value.boolean = 1;
  (next++)->value.value.i8 = -1;
  (next++)->value.value.u8 = 255;
  (next++)->value.value.i16 = -2;
  (next++)->value.value.u16 = 65535;
  (next++)->value.value.i32 = -3;
  (next++)->value.value.u32 = UINT32_MAX;
  (next++)->value.value.i64 = INT64_MIN;
  (next++)->value.value.u64 = INT64_MAX;
  (next++)->value.value.f32 = 1.5f;
  (next++)->value.value.f64 = -0.25;
  next->value.value.decimal.decimals = 2;
  (next++)->value.value.decimal.value = 314;
  (next++)->value.value.bytes = text("t\xc3\xabxt");
  next->value.value.array.num_entries = COUNT(items);
  (next++)->value.value.array.entries = items;
  (next++)->value.value.u64 = 1700000000;
  next->value.value.table.num_entries = 1;
  (next++)->value.value.table.entries = &inner;
  next++;
  next->value.value.bytes.len = 2;
  next->value.value.bytes.bytes = "\0\xff";

  amqp_basic_properties_t properties;
  memset(&properties, 0, sizeof(properties));
  properties._flags =
      AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_CONTENT_ENCODING_FLAG |
      AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
      AMQP_BASIC_PRIORITY_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG |
      AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_EXPIRATION_FLAG |
      AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG |
      AMQP_BASIC_TYPE_FLAG | AMQP_BASIC_USER_ID_FLAG | AMQP_BASIC_APP_ID_FLAG |
      AMQP_BASIC_CLUSTER_ID_FLAG;
  properties.content_type = text("text/plain");
  properties.content_encoding = text("utf-8");
  properties.headers.num_entries = COUNT(headers);
  properties.headers.entries = headers;
  properties.delivery_mode = 2;
  properties.priority = 5;
  properties.correlation_id = text("correlation");
  properties.reply_to = text("reply");
  properties.expiration = text("600000");
  properties.message_id = text("message");
  properties.timestamp = 1700000000;
  properties.type = text("type");
  properties.user_id = text("guest");
  properties.app_id = text("app");
  properties.cluster_id = text("cluster");

  unsigned char octets[256];
  for (int i = 0; i < COUNT(octets); i++) octets[i] = (unsigned char)i;
  amqp_bytes_t body = {sizeof(octets), octets};
  check(amqp_basic_publish(connection, 1, amqp_empty_bytes, text(queue), 0, 0,
                           &properties, body) == AMQP_STATUS_OK,
        "basic.publish");
}

/* --------------------------------------------------------------- getting -- */

static void show_bytes(const char *path, const char *kind, amqp_bytes_t bytes) {
  printf("%s: %s ", path, kind);
  fwrite(bytes.bytes, 1, bytes.len, stdout);
  putchar('\n');
}

static void show_hex(const char *path, amqp_bytes_t bytes) {
  printf("%s: bytes ", path);
  for (size_t i = 0; i < bytes.len; i++)
    printf("%02x", ((unsigned char *)bytes.bytes)[i]);
  putchar('\n');
}

static void show_table(const char *path, amqp_table_t table);

static void show_value(const char *path, amqp_field_value_t field) {
  switch (field.kind) {
    case AMQP_FIELD_KIND_BOOLEAN:
      printf("%s: boolean %d\n", path, field.value.boolean);
      break;
    case AMQP_FIELD_KIND_I8:
      printf("%s: i8 %" PRId8 "\n", path, field.value.i8);
      break;
    case AMQP_FIELD_KIND_U8:
      printf("%s: u8 %" PRIu8 "\n", path, field.value.u8);
      break;
    case AMQP_FIELD_KIND_I16:
      printf("%s: i16 %" PRId16 "\n", path, field.value.i16);
      break;
    case AMQP_FIELD_KIND_U16:
      printf("%s: u16 %" PRIu16 "\n", path, field.value.u16);
      break;
    case AMQP_FIELD_KIND_I32:
      printf("%s: i32 %" PRId32 "\n", path, field.value.i32);
      break;
    case AMQP_FIELD_KIND_U32:
      printf("%s: u32 %" PRIu32 "\n", path, field.value.u32);
      break;
    case AMQP_FIELD_KIND_I64:
      printf("%s: i64 %" PRId64 "\n", path, field.value.i64);
      break;
    case AMQP_FIELD_KIND_U64:
      printf("%s: u64 %" PRIu64 "\n", path, field.value.u64);
      break;
    case AMQP_FIELD_KIND_TIMESTAMP:
      printf("%s: timestamp %" PRIu64 "\n", path, field.value.u64);
      break;
    case AMQP_FIELD_KIND_F32:
      printf("%s: f32 %g\n", path, field.value.f32);
      break;
    case AMQP_FIELD_KIND_F64:
      printf("%s: f64 %g\n", path, field.value.f64);
      break;
    case AMQP_FIELD_KIND_DECIMAL:
      printf("%s: decimal %" PRIu32 " / 10^%d\n", path,
             field.value.decimal.value, field.value.decimal.decimals);
      break;
    case AMQP_FIELD_KIND_UTF8:
      show_bytes(path, "utf8", field.value.bytes);
      break;
    case AMQP_FIELD_KIND_BYTES:
      show_hex(path, field.value.bytes);
      break;
    case AMQP_FIELD_KIND_VOID:
      printf("%s: void\n", path);
      break;
    case AMQP_FIELD_KIND_TABLE:
      show_table(path, field.value.table);
      break;
    case AMQP_FIELD_KIND_ARRAY:
      printf("%s: array of %d\n", path, field.value.array.num_entries);
      for (int i = 0; i < field.value.array.num_entries; i++) {
        char inner[512];
        snprintf(inner, sizeof(inner), "%s.%d", path, i);
        show_value(inner, field.value.array.entries[i]);
      }
      break;
    default:
      printf("%s: unknown kind %c\n", path, field.kind);
  }
}

static void show_table(const char *path, amqp_table_t table) {
  printf("%s: table of %d\n", path, table.num_entries);
  for (int i = 0; i < table.num_entries; i++) {
    char inner[512];
    snprintf(inner, sizeof(inner), "%s.%.*s", path,
             (int)table.entries[i].key.len, (char *)table.entries[i].key.bytes);
    show_value(inner, table.entries[i].value);
  }
}

static void get(amqp_connection_state_t connection, const char *queue) {
  amqp_rpc_reply_t reply = amqp_basic_get(connection, 1, text(queue), 1);
  check_reply(reply, "basic.get");
  check(reply.reply.id == AMQP_BASIC_GET_OK_METHOD, "finding a message");
  amqp_basic_get_ok_t *got = reply.reply.decoded;
  show_bytes("exchange", "utf8", got->exchange);
  show_bytes("routing_key", "utf8", got->routing_key);

  amqp_message_t message;
  check_reply(amqp_read_message(connection, 1, &message, 0), "reading");
  show_hex("body", message.body);
  amqp_basic_properties_t *properties = &message.properties;
  printf("flags: %04x\n", properties->_flags);
  show_bytes("content_type", "utf8", properties->content_type);
  show_bytes("content_encoding", "utf8", properties->content_encoding);
  printf("delivery_mode: u8 %d\n", properties->delivery_mode);
  printf("priority: u8 %d\n", properties->priority);
  show_bytes("correlation_id", "utf8", properties->correlation_id);
  show_bytes("reply_to", "utf8", properties->reply_to);
  show_bytes("expiration", "utf8", properties->expiration);
  show_bytes("message_id", "utf8", properties->message_id);
  printf("timestamp: u64 %" PRIu64 "\n", properties->timestamp);
  show_bytes("type", "utf8", properties->type);
  show_bytes("user_id", "utf8", properties->user_id);
  show_bytes("app_id", "utf8", properties->app_id);
  show_bytes("cluster_id", "utf8", properties->cluster_id);
  show_table("headers", properties->headers);
  amqp_destroy_message(&message);
}

int main(int argc, char **argv) {
  check(argc == 4, "reading ACTION URL QUEUE");
  struct amqp_connection_info info;
  amqp_default_connection_info(&info);
  char *url = strdup(argv[2]);
  check(amqp_parse_url(url, &info) == AMQP_STATUS_OK, "parsing the URL");

  amqp_connection_state_t connection = amqp_new_connection();
  amqp_socket_t *socket = amqp_tcp_socket_new(connection);
  check(socket && amqp_socket_open(socket, info.host, info.port) == 0,
        "connecting");
  check_reply(amqp_login(connection, info.vhost, 0, AMQP_DEFAULT_FRAME_SIZE, 0,
                         AMQP_SASL_METHOD_PLAIN, info.user, info.password),
              "logging in");
  amqp_channel_open(connection, 1);
  check_reply(amqp_get_rpc_reply(connection), "opening a channel");

  if (strcmp(argv[1], "publish") == 0)
    publish(connection, argv[3]);
  else
    get(connection, argv[3]);

  check_reply(amqp_channel_close(connection, 1, AMQP_REPLY_SUCCESS),
              "closing the channel");
  check_reply(amqp_connection_close(connection, AMQP_REPLY_SUCCESS),
              "closing the connection");
  amqp_destroy_connection(connection);
  free(url);
  return 0;
}
