"""
Models of everything that crosses the bridge's boundaries; `schemas/` is generated from them.

Input is strict where a typing error would otherwise be ignored silently (the body of
`POST /api/publish`), and open where other parties add fields of their own: the claims of a
token, the properties of a message, the `auth` of a client library. Output may gain fields,
and readers ignore fields that they do not know. So only strict input forbids extra fields.

Of the models here, only `PublishRequest` and `Problem` are used while the bridge runs, once
per request. The data of a message is any JSON value, which no model inspects.
"""
