#!lua flags=allow-oom
-- Stores a document of the board, or removes it.
--
-- KEYS[1]  hash  the board; field = name of the document, value = "<version> <body>"
--                field "\0versions" = the highest version that a removed document ever had: versions only rise
-- ARGV[1]  name
-- ARGV[2]  expected version, "" = any, "0" = must not exist
-- ARGV[3]  body; absent = remove the document
--
-- Returns {"OK", version} | {"CONFLICT", version found}
local board, name = KEYS[1], ARGV[1]
-- Read what is there.
local found = redis.call('HGET', board, name)
local version = 0
if found then version = tonumber(string.sub(found, 1, string.find(found, ' ', 1, true) - 1)) end
if ARGV[2] ~= '' and tonumber(ARGV[2]) ~= version then return {'CONFLICT', version} end
local floor = tonumber(redis.call('HGET', board, '\0versions') or '0')
-- Remove it.
if not ARGV[3] then
  if found then
    redis.call('HDEL', board, name)
    if version > floor then redis.call('HSET', board, '\0versions', version) end
  end
  return {'OK', version}
end
-- Store it.
if version == 0 then version = floor end
version = version + 1
redis.call('HSET', board, name, version .. ' ' .. ARGV[3])
return {'OK', version}
