-- Orthanc: hand every CT series that has settled to covidseg. Results are SEG, SR and SC: no CT, so nothing comes back.
-- orthanc.json: "LuaScripts": ["covidseg.lua"], "DicomModalities": {"covidseg": ["COVIDSEG", "127.0.0.1", 11112]}
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' and tags['Manufacturer'] ~= 'covidseg' then
    local order = {Resources = {seriesId}, Asynchronous = true}
    RestApiPost('/modalities/covidseg/store', DumpJson(order, true))
  end
end
