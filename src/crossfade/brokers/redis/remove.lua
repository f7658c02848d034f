#!lua flags=allow-oom
-- Removes one entry of a stream, if it still holds exactly what it held when it was looked at.
--
-- KEYS[1]  stream
-- ARGV[1]  id of the entry
-- ARGV[2...]  its names and values
--
-- Returns {"OK"} | {"GONE"} | {"CHANGED"}
local stream, id = KEYS[1], ARGV[1]
local found = redis.call('XRANGE', stream, id, id)
if #found == 0 then return {'GONE'} end
local fields = found[1][2]
if #fields ~= #ARGV - 1 then return {'CHANGED'} end
for i = 1, #fields do
  if fields[i] ~= ARGV[i + 1] then return {'CHANGED'} end
end
redis.call('XDEL', stream, id)
return {'OK'}
